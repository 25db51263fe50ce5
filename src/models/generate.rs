//! Continuing a text token by token, to look at what a model says.

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{CausalLm, attention::Seen};
use crate::error::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely one.
    Greedy,
    /// At random: its probability is that of the model, whose logits are divided by the temperature.
    Temperature {
        /// Above 0. At 1 tokens are as likely as the model finds them; below, likely ones become likelier.
        temperature: f64,
        /// The same seed draws the same tokens.
        seed: u64,
    },
}

/// The tokens with which a model continues a text. An iterator that ends at the model's longest sequence, or where its
/// logits are not finite. See [`CausalLm::generate`].
#[derive(Debug)]
#[must_use = "nothing is generated until tokens are taken"]
pub struct Generation {
    model: CausalLm,
    device: Device,
    sampling: Sampling,
    random: Xoshiro256PlusPlus,
    /// What each block keeps of the tokens that were read.
    seen: Vec<Seen>,
    /// Number of tokens that were read.
    read: usize,
    /// Tokens that were not read yet.
    next: Vec<u32>,
}

impl CausalLm {
    /// Continues `prompt`. Keys and values of the tokens read are kept, so that a further token costs one pass over one
    /// token.
    ///
    /// # Errors
    /// [`Error::Setting`] for a prompt that is empty, longer than [`longest_sequence`](Self::longest_sequence) or has a token
    /// outside the vocabulary, and for a temperature that is not above 0.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use scalebio::{burn::tensor::Device, data::Tokenizer, models::{CausalLm, Sampling}};
    ///
    /// let model = CausalLm::from_pretrained("path/to/model", &Device::flex())?;
    /// let tokenizer = Tokenizer::from_pretrained("path/to/model")?;
    /// let prompt = tokenizer.tokens("Once upon a time")?;
    /// let story: Vec<u32> = model.generate(&prompt, Sampling::Greedy)?.take(100).collect();
    /// println!("{}", tokenizer.text(&story)?);
    /// # Ok::<(), scalebio::Error>(())
    /// ```
    pub fn generate(&self, prompt: &[u32], sampling: Sampling) -> Result<Generation> {
        let (longest, vocabulary) = (self.longest_sequence(), self.vocabulary_size());
        if prompt.is_empty() || prompt.len() > longest {
            let allowed = format!("from 1 to {longest} tokens, the positions of the model");
            let remedy = "begin with the tokenizer's start of text, or shorten the prompt";
            return Err(Error::setting("prompt", prompt.len(), allowed, remedy));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocabulary) {
            let allowed = format!("below {vocabulary}, the vocabulary of the model");
            let remedy = "use the tokenizer that belongs to the model";
            return Err(Error::setting("a token of the prompt", id, allowed, remedy));
        }
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Temperature { temperature, seed } => {
                if !(temperature.is_finite() && temperature > 0.0) {
                    let remedy = "use `Sampling::Greedy` for the most likely tokens";
                    let allowed = "a number above 0";
                    return Err(Error::setting("temperature", temperature, allowed, remedy));
                }
                seed
            }
        };
        let model = self.valid();
        Ok(Generation {
            device: model.device(),
            sampling,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            seen: vec![Seen::default(); model.network().blocks()],
            read: 0,
            next: prompt.to_vec(),
            model,
        })
    }
}

impl Generation {
    /// The logits after the tokens that were not read yet, which are read now.
    fn read_next(&mut self) -> Vec<f32> {
        let ids: Vec<i64> = self.next.drain(..).map(i64::from).collect();
        let length = ids.len();
        self.read += length;
        let ids = Tensor::<1, Int>::from_data(ids.as_slice(), &self.device);
        let mask = Tensor::<2, Int>::ones([1, self.read], &self.device);
        let network = self.model.network();
        let offloaded = self.model.offloading();
        let hidden = network.hidden(offloaded, ids.unsqueeze(), mask, &mut self.seen);
        let logits = network.head(hidden.narrow(0, length - 1, 1));
        logits.into_data().iter::<f32>().collect()
    }

    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))?;
        let token = match self.sampling {
            Sampling::Greedy => best,
            Sampling::Temperature { temperature, .. } => {
                let highest = f64::from(logits[best]);
                let weight = |logit: &f32| ((f64::from(*logit) - highest) / temperature).exp();
                let mut left = self.random.random::<f64>() * logits.iter().map(weight).sum::<f64>();
                let drawn = logits.iter().position(|logit| {
                    left -= weight(logit);
                    left < 0.0
                });
                // Rounding may leave a little after the last.
                drawn.unwrap_or(best)
            }
        };
        u32::try_from(token).ok()
    }
}

impl Iterator for Generation {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.next.is_empty() || self.read + self.next.len() > self.model.longest_sequence() {
            return None;
        }
        let logits = self.read_next();
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let token = self.choose(&logits)?;
        self.next.push(token);
        Some(token)
    }
}
