//! What other programs need to draw from the sources by the same weights.

use std::path::{Path, PathBuf, absolute};

use serde_json::{Value, json};

use super::ResampleConfig;
use super::index::{Form, Index};
use crate::files::replace;
use crate::reweight::Mixture;
use crate::{Error, Result};

/// A source that is drawn from.
struct Part {
    name: String,
    file: PathBuf,
    weight: f64,
    /// Share of its records that a mix like this one has.
    share: f64,
    form: Form,
}

/// Writes a file for each program into `folder`. Sources that give no sample are left out: some programs refuse weights of 0.
pub(super) fn write(
    folder: &Path,
    mixture: &Mixture,
    paths: &[&Path],
    indices: &[Index],
    counts: &[usize],
    config: &ResampleConfig,
) -> Result<()> {
    let mut parts = Vec::new();
    let sum: f64 = mixture.weights().iter().sum();
    for (source, name) in mixture.names().iter().enumerate() {
        if counts[source] == 0 {
            continue;
        }
        let path = paths[source];
        parts.push(Part {
            name: name.clone(),
            file: absolute(path).map_err(|e| Error::io(path, e))?,
            weight: mixture.weights()[source] / sum,
            share: counts[source] as f64 / indices[source].records() as f64,
            form: indices[source].form,
        });
    }
    let drawn: f64 = parts.iter().map(|part| part.weight).sum();
    let largest = parts.iter().map(|part| part.share).fold(1.0, f64::max);
    for part in &mut parts {
        part.weight /= drawn;
        part.share /= largest;
    }
    let folder_name = absolute(folder).map_err(|e| Error::io(folder, e))?;
    let files = [
        ("dataset_info.json", dataset_info(&parts)),
        ("llama_factory.yaml", llama_factory(&parts, &folder_name)),
        ("axolotl.yaml", axolotl(&parts)),
        ("mosaic_streaming.py", mosaic(&parts, config)),
        ("hugging_face.py", hugging_face(&parts, config)),
    ];
    for (name, text) in files {
        replace(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// As a string of JSON, which is one of YAML and of Python too.
fn quoted(text: impl ToString) -> String {
    Value::from(text.to_string()).to_string()
}

/// A source's name where names are separated by commas.
fn without_comma(part: &Part) -> String {
    part.name.replace(',', "_")
}

fn joined(parts: &[Part], of: impl Fn(&Part) -> String) -> String {
    parts.iter().map(of).collect::<Vec<_>>().join(",")
}

/// LLaMA-Factory's list of data sets.
fn dataset_info(parts: &[Part]) -> String {
    let sets: serde_json::Map<String, Value> = parts
        .iter()
        .map(|part| {
            let file = part.file.display().to_string();
            let set = match part.form {
                Form::Text => json!({"file_name": file, "columns": {"prompt": "text"}}),
                Form::Messages => json!({
                    "file_name": file,
                    "formatting": "sharegpt",
                    "columns": {"messages": "messages"},
                    "tags": {
                        "role_tag": "role", "content_tag": "content", "user_tag": "user",
                        "assistant_tag": "assistant", "system_tag": "system",
                    },
                }),
                Form::ShareGpt(name) => json!({
                    "file_name": file, "formatting": "sharegpt", "columns": {"messages": name},
                }),
                Form::Alpaca | Form::Other => json!({"file_name": file}),
            };
            (without_comma(part), set)
        })
        .collect();
    format!("{:#}\n", Value::from(sets))
}

fn llama_factory(parts: &[Part], folder: &Path) -> String {
    format!(
        "# LLaMA-Factory: put these lines into the YAML file of the training. dataset_info.json is beside this file.\n\
         # Drawing ends with the first source that has no record left.\n\
         dataset_dir: {}\n\
         dataset: {}\n\
         mix_strategy: \"interleave_under\"\n\
         interleave_probs: {}\n",
        quoted(folder.display()),
        quoted(joined(parts, without_comma)),
        quoted(joined(parts, |part| part.weight.to_string())),
    )
}

fn axolotl(parts: &[Part]) -> String {
    let mut text = "# axolotl: put these lines into the YAML file of the training. `weight` is the share of its own records that\n\
                    # a data set gives (axolotl of May 2026 or newer; with an older one, take mix.jsonl as the only data set).\n\
                    datasets:\n"
        .to_owned();
    for part in parts {
        let kind = match part.form {
            Form::Text => "completion",
            Form::Alpaca | Form::Other => "alpaca",
            Form::Messages | Form::ShareGpt(_) => "chat_template",
        };
        text += &format!(
            "  - path: {}\n    ds_type: \"json\"\n    type: {}\n    weight: {}\n",
            quoted(part.file.display()),
            quoted(kind),
            part.share
        );
        if let Form::ShareGpt(name) = part.form {
            text += &format!(
                "    field_messages: {}\n    message_property_mappings:\n      role: \"from\"\n      content: \"value\"\n",
                quoted(name)
            );
        }
    }
    text
}

fn mosaic(parts: &[Part], config: &ResampleConfig) -> String {
    let streams: String = parts
        .iter()
        .map(|part| {
            let (name, weight) = (quoted(format!("mds/{}", part.name)), part.weight);
            format!("    Stream(local={name}, proportion={weight}),\n")
        })
        .collect();
    format!(
        "# MosaicML Streaming: `local` is the folder of a source's shards, which MDSWriter makes of its file.\n\
         from streaming import Stream, StreamingDataset\n\n\
         streams = [\n{streams}]\n\
         dataset = StreamingDataset(\n    streams=streams,\n    epoch_size={},\n    shuffle=True,\n    shuffle_seed={},\n    \
         batch_size=1,  # that of a device\n)\n",
        config.samples, config.seed
    )
}

fn hugging_face(parts: &[Part], config: &ResampleConfig) -> String {
    let files = parts.iter().map(|part| quoted(part.file.display()));
    let files = files
        .map(|file| format!("    {file},\n"))
        .collect::<String>();
    let weights: Vec<f64> = parts.iter().map(|part| part.weight).collect();
    format!(
        "# Hugging Face datasets: the columns of all sources must be the same.\n\
         from datasets import interleave_datasets, load_dataset\n\n\
         files = [\n{files}]\n\
         probabilities = {}\n\
         sources = [load_dataset(\"json\", data_files=file, split=\"train\") for file in files]\n\
         mix = interleave_datasets(\n    sources,\n    probabilities=probabilities,\n    seed={},\n    \
         stopping_strategy=\"first_exhausted\",\n)\n",
        Value::from(weights),
        config.seed
    )
}
