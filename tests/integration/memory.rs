//! Memory that opening a checkpoint takes, measured in a process of its own.

use std::fs;
use std::process::Command;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use scalebio::models::{CausalLm, Dtype, Gpt2Config};

/// What the kernel says of this process, in bytes.
fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kibibytes = line.split_whitespace().nth(1).unwrap();
    kibibytes.parse::<u64>().unwrap() * 1024
}

/// A process of its own, for the test below; by hand:
/// `LOAD=DIR DTYPE=bf16 cargo test --release --test integration -- --exact memory::loads_one_model --ignored --nocapture`.
#[test]
#[ignore = "the process of another test"]
fn loads_one_model() {
    #[derive(Default)]
    struct Sizes(Vec<usize>);

    impl ModuleVisitor for Sizes {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let width = param.val().dtype().size();
            self.0.push(param.shape().num_elements() * width);
        }
    }

    let (Ok(folder), Ok(dtype)) = (std::env::var("LOAD"), std::env::var("DTYPE")) else {
        return;
    };
    fs::write("/proc/self/clear_refs", "5").unwrap(); // forgets the peak so far
    let before = memory("VmRSS:");
    let model =
        CausalLm::from_pretrained_as(&folder, &Device::flex(), dtype.parse().unwrap()).unwrap();
    let peak = memory("VmHWM:") - before;
    let mut sizes = Sizes::default();
    model.visit(&mut sizes);
    let (sum, largest) = (sizes.0.iter().sum::<usize>(), sizes.0.iter().max().unwrap());
    println!("peak {peak} model {sum} largest {largest}");
}

/// The peak of memory over the model's own size stays below 1.3 times its largest tensor: no copy, and none in float32.
#[test]
fn a_model_is_never_held_twice_nor_wider_than_asked_for() {
    let config = Gpt2Config::new(100_000, 16, 192, 1, 2);
    let made = CausalLm::from(config.init(0, &Device::flex()).unwrap());
    let wide = tempfile::tempdir().unwrap();
    made.save_pretrained(wide.path(), u64::MAX).unwrap();
    let narrow = tempfile::tempdir().unwrap();
    let made = made.cast(Dtype::Bfloat16).unwrap();
    made.save_pretrained(narrow.path(), u64::MAX).unwrap();
    for (folder, dtype) in [(&wide, "float32"), (&wide, "bf16"), (&narrow, "bf16")] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "memory::loads_one_model",
                "--ignored",
                "--nocapture",
            ])
            .env("LOAD", folder.path())
            .env("DTYPE", dtype)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once("peak "));
        let (_, line) = line.unwrap_or_else(|| panic!("{text}"));
        let numbers = line.split(' ').filter_map(|word| word.parse().ok());
        let [peak, model, largest]: [f64; 3] = numbers.collect::<Vec<_>>().try_into().unwrap();
        assert!(peak >= model, "{line}");
        assert!(peak - model < 1.3 * largest, "{dtype}: {line}");
    }
}
