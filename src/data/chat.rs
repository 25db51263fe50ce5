//! Chat templates: how a model wants a conversation written down.

use std::sync::Arc;

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{Message, Segment};

/// A template in Jinja, as a model's folder has it, with its special tokens.
#[derive(Clone, Debug)]
pub(super) struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    start: String,
    end: String,
}

/// The name of the only template.
const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a template the way transformers does. There is no `strftime_now`: templates that ask whether there is then
    /// write a fixed date, and the same data give the same tokens on every day.
    pub(super) fn new(source: String, start: &str, end: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| e.to_string())?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |message: String| {
            Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // minijinja's own escapes for HTML.
        environment.add_filter("tojson", |value: Value| {
            serde_json::to_string(&value)
                .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| format!("the chat template cannot be read: {e}"))?;
        Ok(Self {
            environment: Arc::new(environment),
            start: start.to_owned(),
            end: end.to_owned(),
        })
    }

    /// Everything that decides what it writes: its source, and the tokens of start and end.
    pub(super) fn parts(&self) -> (Option<String>, &str, &str) {
        let template = self.environment.get_template(NAME).ok();
        let source = template.map(|template| template.source().to_owned());
        (source, &self.start, &self.end)
    }

    /// Writes the conversation down. What the assistant says is learned, up to and with the mark that ends its turn: what
    /// the template adds when the turn is there, to what it writes when it asks for the turn.
    pub(super) fn segments(&self, messages: &[Message]) -> Result<Vec<Segment>, String> {
        let whole = self.render(messages, false)?;
        let mut segments = Vec::new();
        let mut done = 0;
        for (index, message) in messages.iter().enumerate() {
            if !message.is_learned() {
                continue;
            }
            let (start, end) = self
                .place(&whole, messages, index)
                .filter(|(start, _)| *start >= done)
                .ok_or_else(|| {
                    format!(
                        "the chat template does not write turn {} after the turns before it as it writes it alone, so that it \
                         is not clear what to learn",
                        index + 1
                    )
                })?;
            // White space after the mark belongs to the layout.
            let turn = whole[start..end].trim_end();
            segments.push(segment(&whole[done..start], false));
            segments.push(segment(turn, true));
            done = start + turn.len();
        }
        segments.push(segment(&whole[done..], false));
        segments.retain(|segment| !segment.text.is_empty());
        Ok(segments)
    }

    /// Writes the conversation down as far as the model is to go on as the assistant.
    pub(super) fn prompt(&self, messages: &[Message]) -> Result<String, String> {
        self.render(messages, true)
    }

    /// Where the text of a turn begins and its mark ends.
    fn place(&self, whole: &str, messages: &[Message], index: usize) -> Option<(usize, usize)> {
        let end = self.render(&messages[..=index], false).ok()?;
        let end = whole.starts_with(&end).then_some(end.len())?;
        let asked = self.render(&messages[..index], true).ok();
        if let Some(start) = asked.filter(|text| text.len() <= end && whole.starts_with(text)) {
            return Some((start.len(), end));
        }
        // Some templates do not write a turn the way they ask for it; some cannot write a conversation without turns.
        let before = self.render(&messages[..index], false).unwrap_or_default();
        let before = if whole.starts_with(&before) {
            before.len()
        } else {
            0
        };
        let content = messages[index].content.trim();
        let start = whole.get(before..end)?.find(content)?;
        Some((before + start, end))
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let template = self.environment.get_template(NAME);
        let turns: Vec<Value> = messages
            .iter()
            .map(|m| {
                Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())])
            })
            .collect();
        let values = context! {
            messages => turns,
            add_generation_prompt,
            bos_token => self.start.as_str(),
            eos_token => self.end.as_str(),
        };
        template
            .and_then(|template| template.render(values))
            .map_err(|e| {
                let cause = e.detail().map_or_else(|| e.to_string(), str::to_owned);
                format!("the chat template refuses the conversation: {cause}")
            })
    }
}

fn segment(text: &str, learned: bool) -> Segment {
    let text = text.to_owned();
    Segment { text, learned }
}
