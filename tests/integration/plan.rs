//! The memory of a run is predicted from a model's config.json alone.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use proptest::prelude::*;
use scalebio::Error;
use scalebio::models::{
    CausalLm, DeviceMemory, Dtype, MemoryPlan, ModelSize, Placement, PlanConfig,
};

use crate::examples::{example, printed};

fn shipped(name: &str) -> ModelSize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/memory_plan/configs");
    ModelSize::read(folder.join(format!("{name}.json"))).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/hf")
        .join(name)
}

fn plan(size: &ModelSize, config: &PlanConfig) -> Vec<DeviceMemory> {
    MemoryPlan::new(size, config).unwrap().devices().to_vec()
}

fn lisa(blocks: usize) -> PlanConfig {
    PlanConfig {
        lisa_blocks: Some(blocks),
        ..PlanConfig::default()
    }
}

/// The shipped configs of the paper's seven models describe models of the published sizes.
#[test]
fn the_seven_models_have_their_published_sizes() {
    for (name, parameters) in [
        ("gpt2", 124_439_808_u64),
        ("gpt-neox-20b", 20_554_567_680),
        ("llama-3-8b", 8_030_261_248),
        ("yi-34b", 34_388_917_248),
        ("gemma-2-9b", 9_241_705_984),
        ("qwen2-7b", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
    ] {
        let size = shipped(name);
        assert_eq!(size.parameters() as u64, parameters, "{name}");
        let parts = size.outside() + size.blocks() * size.per_block();
        assert_eq!(parts as u64, parameters, "{name}");
    }
}

/// LISA trains embeddings, norm, head and as many blocks as were asked for.
#[test]
fn lisa_trains_what_the_documentation_says() {
    for (name, blocks, others, trained) in [
        ("gpt2", 2, true, 53_561_088_u64),
        ("llama-3-8b", 2, true, 1_486_901_248),
        ("llama-3-8b", 4, true, 1_923_125_248),
        ("llama-3-8b", 4, false, 4 * 218_112_000),
        ("gpt2", 100, true, 124_439_808),
    ] {
        let size = shipped(name);
        assert_eq!(size.trained(blocks, others) as u64, trained, "{name}");
    }
}

/// A config.json says the same of a model as the model that is loaded from its folder.
#[test]
fn a_config_has_the_sizes_of_the_loaded_model() {
    for name in [
        "gemma2", "gpt2", "gpt_neox", "llama3", "qwen2", "qwen2.5", "yi",
    ] {
        let size = ModelSize::read(fixture(name)).unwrap();
        let file = ModelSize::read(fixture(name).join("config.json")).unwrap();
        let model = CausalLm::from_pretrained(fixture(name), &Device::flex()).unwrap();
        assert_eq!(size, file, "{name}");
        assert_eq!(size, ModelSize::of(&model), "{name}");
        let counted = burn::module::Module::num_params(&model);
        assert_eq!(size.parameters(), counted, "{name}");
        assert_eq!(size.vocabulary_size(), model.vocabulary_size(), "{name}");
        assert_eq!(size.longest_sequence(), model.longest_sequence(), "{name}");
        assert!(size.width() > 0 && size.blocks() > 0);
    }
}

/// Models, masters, moments and gradients are so many bytes a parameter as the optimizer and the solver are documented to
/// hold: AdamW 8 a float32 number that trains and 12 a bfloat16 one, SGD 0 and 4; two gradients on one device.
#[test]
fn bytes_a_parameter_are_those_of_the_optimizer_and_the_solver() {
    let size = shipped("llama-3-8b");
    let (all, active) = (8_030_261_248, 1_486_901_248);
    let base = lisa(2);
    let one = |config: &PlanConfig| plan(&size, config)[0].clone();

    let single = one(&base);
    assert_eq!((single.u, single.w), (4 * all, 4 * all));
    assert_eq!((single.masters, single.moments), (0, 2 * 8 * active));
    assert_eq!(single.gradients, 2 * 4 * active);

    let half = one(&PlanConfig {
        dtype: Dtype::Bfloat16,
        ..base.clone()
    });
    assert_eq!((half.u, half.w), (2 * all, 2 * all));
    assert_eq!(half.masters + half.moments, 2 * 12 * active);
    assert_eq!(half.gradients, 2 * 4 * active);

    let sgd = one(&PlanConfig {
        dtype: Dtype::Bfloat16,
        moments: 0,
        ..base.clone()
    });
    assert_eq!((sgd.masters, sgd.moments), (2 * 4 * active, 0));

    let alone = one(&PlanConfig {
        auxiliary: false,
        ..base.clone()
    });
    assert_eq!((alone.u, alone.moments), (0, 8 * active));
    let concurrent = one(&PlanConfig {
        concurrent: true,
        ..base.clone()
    });
    assert_eq!(concurrent.gradients, 3 * 4 * active);
    assert_eq!(concurrent.tape, 2 * single.tape);
    let pieces = one(&PlanConfig {
        batch: 2,
        micro_batch: Some(1),
        ..base.clone()
    });
    assert_eq!(pieces.gradients, 3 * 4 * active);
    assert_eq!(pieces.tape, single.tape);

    // Until they have trained, blocks are in memory once for both models.
    let early = one(&PlanConfig {
        draws: Some(3),
        ..base.clone()
    });
    assert_eq!(early.u, 4 * (active + 10 * size.per_block() as u64));
    let frozen = one(&PlanConfig {
        freeze_others: true,
        ..base
    });
    assert_eq!(frozen.gradients, 2 * 4 * 2 * size.per_block() as u64);
    assert_eq!(frozen.u, 4 * (all - size.outside() as u64));
}

/// One tape holds all blocks and all logits; block by block, memory grows with depth by the kept inputs alone.
#[test]
fn block_by_block_the_tape_does_not_grow_with_depth_nor_the_logits_with_the_batch() {
    let size = shipped("gpt2");
    let with = |blockwise, batch| {
        let config = PlanConfig {
            batch,
            length: 256,
            blockwise: Some(blockwise),
            ..lisa(2)
        };
        plan(&size, &config)[0].clone()
    };
    let (plain, blockwise) = (with(false, 16), with(true, 16));
    assert_eq!(plain.logits, 2 * 4 * 16 * 256 * 50_257);
    // Outputs of the four matrices of twelve blocks, and inputs in the two that train.
    assert_eq!(plain.tape, 4 * 16 * 256 * (12 * 9 + 2 * 7) * 768);
    let states = 4 * 16 * 256 * 768;
    let masks = 4 * 16 * 256 * 256;
    assert_eq!(blockwise.inputs, (12 + 5) * states + masks);
    assert_eq!(with(true, 32).logits, blockwise.logits);
    assert_eq!(with(true, 32).inputs, 2 * blockwise.inputs);

    // Without a choice it is as in the model: block by block where something is frozen,
    let config = |lisa_blocks, freeze_others| PlanConfig {
        batch: 16,
        length: 256,
        lisa_blocks,
        freeze_others,
        ..PlanConfig::default()
    };
    let tape = |config: &PlanConfig| plan(&size, config)[0].tape;
    let all = 4 * 16 * 256 * 12 * 16 * 768;
    assert_eq!(tape(&config(None, false)), all);
    assert_eq!(tape(&config(Some(12), false)), all);
    assert_eq!(tape(&config(None, true)), blockwise.tape);
    // With the tapes of the uppermost blocks, of which four fit into 12 bytes for each of 39,383,808 parameters outside.
    let of_a_block = 4 * 16 * 256 * (9 + 7) * 768;
    assert_eq!(12 * size.outside() as u64 / (4 * 16 * 256 * 9 * 768), 4);
    assert_eq!(tape(&config(Some(11), false)), 4 * of_a_block);
}

proptest! {
    /// However the models are placed, their bytes are the same in sum, every device's columns add up to its total, and the
    /// total of a plan is that of its devices.
    #[test]
    fn plans_add_up_and_placements_conserve_bytes(
        model in prop::sample::select(vec!["gpt2", "llama-3-8b", "gemma-2-9b", "qwen2.5-32b"]),
        devices in 1_usize..12,
        batch in 12_usize..100,
        micro in 1_usize..40,
        half in any::<bool>(),
        blockwise in any::<bool>(),
        freeze_others in any::<bool>(),
    ) {
        let size = shipped(model);
        let with = |placement| {
            let config = PlanConfig {
                batch,
                micro_batch: Some(micro),
                dtype: if half { Dtype::Bfloat16 } else { Dtype::Float32 },
                blockwise: Some(blockwise),
                freeze_others,
                placement,
                ..PlanConfig::default()
            };
            MemoryPlan::new(&size, &config).unwrap()
        };
        let sums = |plan: &MemoryPlan| {
            let columns = |d: &DeviceMemory| [d.u, d.w, d.masters, d.moments];
            plan.devices().iter().map(columns).fold([0; 4], |sum, device| {
                [0, 1, 2, 3].map(|i| sum[i] + device[i])
            })
        };
        let one = with(Placement::One);
        let spread = with(Placement::Spread(devices));
        let parallel = with(Placement::Parallel(devices));
        let apart = with(Placement::Apart(2));
        prop_assert_eq!(spread.devices().len(), devices);
        prop_assert_eq!(spread.devices().iter().map(|d| d.blocks).sum::<usize>(), size.blocks());
        prop_assert_eq!(sums(&spread), sums(&one));
        prop_assert_eq!(sums(&parallel), sums(&one).map(|bytes| devices as u64 * bytes));
        prop_assert_eq!(apart.devices()[0].u + apart.devices()[1].w, 0);
        let [_, w, masters, moments] = sums(&one);
        prop_assert_eq!(sums(&apart), [w, w, masters, moments]);

        for plan in [&one, &spread, &parallel, &apart] {
            prop_assert_eq!(plan.total(), plan.devices().iter().map(|d| d.total).sum::<u64>());
            prop_assert!(plan.devices().iter().all(|d| d.total <= plan.largest()));
            for d in plan.devices() {
                let sum = d.u + d.w + d.masters + d.moments + d.gradients + d.inputs + d.tape + d.logits;
                prop_assert!(d.total <= sum);
                if blockwise {
                    prop_assert_eq!(d.total, sum - d.tape.min(d.logits));
                } else {
                    prop_assert!(d.total >= sum - d.gradients);
                    prop_assert!(d.total >= sum - d.tape - d.logits);
                }
            }
        }
    }
}

/// Settings that cannot work are errors that name the setting, and a config that is no model's is one that names its file.
#[test]
fn what_cannot_work_is_an_error() {
    let size = shipped("gpt2");
    let base = PlanConfig::default;
    let cases = [
        ("batch", PlanConfig { batch: 0, ..base() }),
        (
            "batch",
            PlanConfig {
                batch: usize::MAX,
                ..base()
            },
        ),
        (
            "micro-batch",
            PlanConfig {
                micro_batch: Some(0),
                ..base()
            },
        ),
        (
            "length",
            PlanConfig {
                length: 0,
                ..base()
            },
        ),
        (
            "length",
            PlanConfig {
                length: 1_025,
                ..base()
            },
        ),
        (
            "moments",
            PlanConfig {
                moments: 3,
                ..base()
            },
        ),
        (
            "lisa blocks",
            PlanConfig {
                lisa_blocks: Some(0),
                ..base()
            },
        ),
        ("lisa blocks", lisa(13)),
        (
            "draws",
            PlanConfig {
                draws: Some(0),
                ..base()
            },
        ),
        (
            "devices",
            PlanConfig {
                placement: Placement::Spread(0),
                ..base()
            },
        ),
        (
            "devices",
            PlanConfig {
                placement: Placement::Spread(13),
                ..base()
            },
        ),
        (
            "devices",
            PlanConfig {
                placement: Placement::Parallel(2),
                ..base()
            },
        ),
        (
            "placement",
            PlanConfig {
                placement: Placement::Apart(2),
                auxiliary: false,
                ..base()
            },
        ),
    ];
    for (wanted, config) in cases {
        match MemoryPlan::new(&size, &config) {
            Err(Error::Setting { name, .. }) => assert_eq!(name, wanted, "{config:?}"),
            other => panic!("{config:?} gives {other:?}"),
        }
    }
    MemoryPlan::new(&size, &lisa(12)).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    assert!(matches!(ModelSize::read(&path), Err(Error::Io { .. })));
    for text in [
        "",
        "{}",
        r#"{"model_type": "bert"}"#,
        r#"{"model_type": "gpt2", "n_head": 5}"#,
    ] {
        std::fs::write(&path, text).unwrap();
        let error = ModelSize::read(folder.path()).unwrap_err();
        assert!(
            matches!(&error, Error::File { path: named, .. } if *named == path),
            "{error}"
        );
    }
}

/// `reweight` refuses a model that this machine cannot hold before it opens it, unless it is forced to try; a run prints what
/// it was predicted to take and what it took. (34 billion parameters in float32 with AdamW take more than 1 TB.)
#[cfg(target_os = "linux")]
#[test]
fn reweight_refuses_what_does_not_fit_and_prints_what_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/memory_plan/configs");
    std::fs::copy(shipped.join("yi-34b.json"), model.join("config.json")).unwrap();
    let out = folder.path().join("run");
    let large = [
        "--model",
        model.to_str().unwrap(),
        "--tokenizer",
        "tests/fixtures/stories260K/tokenizer.json",
        "--out",
        out.to_str().unwrap(),
    ];
    let said = |arguments: &[&str]| {
        let output = example("reweight", arguments);
        assert!(!output.status.success());
        assert!(!out.exists());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = said(&large);
    assert!(error.contains("MB available"), "{error}");
    assert!(error.contains("--force"), "{error}");
    let error = said(&[&large[..], &["--force"]].concat());
    assert!(error.contains("model.safetensors"), "{error}");

    let small = ["--no-compare", "--steps", "1", "--batch", "7"];
    let text = printed(&example("reweight", &[&small[..], &large[4..]].concat()));
    let predicted = text.find("memory as predicted").unwrap();
    let loaded = text.find("model with").unwrap();
    let peak = text.find("MB at the peak").unwrap();
    assert!(predicted < loaded && loaded < peak, "{text}");
    assert!(!text.contains("a step moves"), "{text}");

    let other = folder.path().join("offloaded");
    let other = [&large[2..4], &["--out", other.to_str().unwrap()]].concat();
    let offloaded = "--lisa-blocks 1 --device ndarray --offload frozen,moments";
    let offloaded: Vec<_> = offloaded.split(' ').chain(small).chain(other).collect();
    let text = printed(&example("reweight", &offloaded));
    assert!(text.contains("\nhost "), "{text}");
    assert!(text.contains("a step moves"), "{text}");
}

/// `memory_plan` prints a line for each of the seven models, and for each device of one of them.
#[test]
fn the_example_prints_the_models_and_the_devices_of_one() {
    let text = printed(&example("memory_plan", &["--lisa-blocks", "4"]));
    assert!(text.contains("qwen2.5-32b"), "{text}");
    assert!(text.contains("1923125248"), "{text}");
    assert_eq!(text.lines().count(), 2 + 7);
    let spread = ["--model", "qwen2.5-32b", "--devices", "8"];
    let text = printed(&example("memory_plan", &spread));
    assert!(text.contains("32763876352 parameters"), "{text}");
    assert!(text.contains("\n1-2 "), "{text}");

    let offloaded = printed(&example(
        "memory_plan",
        &[&spread[..], &["--offload", "frozen"]].concat(),
    ));
    assert!(offloaded.contains("\nhost "), "{offloaded}");
    assert!(offloaded.contains("a step moves"), "{offloaded}");

    // A card of 24 GB holds GPT-2 with its copy, eight of them Qwen2.5-32B, one does not.
    let text = printed(&example("memory_plan", &["--device-memory", "24"]));
    assert_eq!(text.lines().count(), 2 + 7);
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("qwen2.5-32b") && last.contains("("),
        "{text}"
    );
    assert!(!text.lines().nth(2).unwrap().contains("("), "{text}");
    let placed = ["--model", "qwen2-7b", "--devices", "2", "--device-memory"];
    let apart = printed(&example("memory_plan", &[&placed[..], &["1000"]].concat()));
    let spread = printed(&example("memory_plan", &[&placed[..], &["1"]].concat()));
    assert_ne!(apart, spread);

    let config = fixture("llama3").join("config.json");
    let one = ["--config", config.to_str().unwrap(), "--length", "8"];
    for (arguments, said) in [
        (&["--batch", "0"][..], "batch is 0 samples"),
        (&["--devices", "1", "--placement", "apart"], "apart takes 2"),
        (
            &["--devices", "2", "--device-memory", "0"],
            "greater than 0",
        ),
        (&["--placement", "apart", "--without-u"], "placement"),
        (
            &["--placement", "parallel", "--devices", "65"],
            "65 devices",
        ),
    ] {
        let output = example("memory_plan", &[&one[..], arguments].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    for options in [
        &[
            "--placement",
            "apart",
            "--freeze-others",
            "--optimizer",
            "sgd",
        ][..],
        &[
            "--placement",
            "parallel",
            "--blockwise",
            "false",
            "--concurrent",
        ],
        &["--without-u", "--lisa-blocks", "0", "--dtype", "float32"],
    ] {
        printed(&example("memory_plan", &[&one[..], options].concat()));
    }
}
