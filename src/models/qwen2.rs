//! Qwen-2 and Qwen-2.5: Yang et al., "Qwen2 Technical Report" (2024), "Qwen2.5 Technical Report" (2025).
//!
//! A Llama whose queries, keys and values have biases, and whose later blocks may look back no further than a sliding
//! window.

use super::{decoder::Heads, llama::LlamaConfig, settings::Settings};
use crate::error::Result;

impl LlamaConfig {
    /// `model_type` "qwen2".
    pub fn qwen2(settings: &Settings) -> Result<Self> {
        let heads = Heads::read(settings, 4096, 32, Some(32), None)?;
        let blocks = settings.blocks(32)?;
        let window = match settings.flag("use_sliding_window", false)? {
            true => settings.size_or_off("sliding_window", Some(4096))?,
            false => None,
        };
        // 0 is allowed: all blocks slide.
        let full = match settings
            .get("max_window_layers")
            .map(|value| value.as_u64())
        {
            None => 28,
            Some(Some(full)) => full,
            Some(None) => {
                let allowed = "a whole number";
                return Err(settings.refuse("max_window_layers", allowed, "correct it"));
            }
        };
        let slides = settings.sliding(blocks, |block| window.is_some() && block as u64 >= full)?;
        Self {
            query_key_value_bias: true,
            window,
            ..Self::without_biases(settings, heads, [151_936, 22_016, 32_768], slides)?
        }
        .checked(settings)
    }
}
