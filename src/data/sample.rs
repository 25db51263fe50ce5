//! One sequence of tokens, and which of them are learned.

/// The label of a position that is not learned.
pub const IGNORED: i64 = -100;

/// A sequence of tokens to train on. Both lists have the same length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Whether the model learns to predict this token from those before it. Never true in effect for the first token,
    /// which has none before it.
    pub learned: Vec<bool>,
}

impl Sample {
    /// Returns the label of each position: its token, or [`IGNORED`] if it is not learned. A model predicts the label
    /// at `t` from the tokens up to `t - 1`, so that the first is always ignored.
    pub fn labels(&self) -> impl Iterator<Item = i64> {
        let labels = self.ids.iter().zip(&self.learned).enumerate();
        labels.map(|(position, (id, learned))| {
            if *learned && position > 0 {
                i64::from(*id)
            } else {
                IGNORED
            }
        })
    }

    /// Returns the number of tokens that the model learns to predict: the loss of the sample is the mean over them.
    pub fn label_tokens(&self) -> usize {
        self.labels().filter(|label| *label != IGNORED).count()
    }

    /// Keeps the first `length` tokens.
    pub(super) fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.learned.truncate(length);
    }

    /// Cuts the sample into consecutive ones of `length` tokens; the last may be shorter.
    pub(super) fn pieces(&self, length: usize) -> impl Iterator<Item = Self> {
        let pieces = self.ids.chunks(length).zip(self.learned.chunks(length));
        pieces.map(|(ids, learned)| Self {
            ids: ids.to_vec(),
            learned: learned.to_vec(),
        })
    }
}
