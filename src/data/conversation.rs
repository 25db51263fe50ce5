//! Conversations: messages of several speakers, of which those of the assistant are learned.

use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`. What `assistant` says is learned.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Whether the model learns it.
    pub fn is_learned(&self) -> bool {
        self.role == "assistant"
    }

    /// Reads `[{"role", "content"}]`.
    pub(super) fn list(value: Value) -> Result<Vec<Self>, String> {
        read(value, "messages", ["role", "content"], Ok)
    }

    /// Reads ShareGPT's `[{"from", "value"}]`, the value of the field `name`.
    pub(super) fn share_gpt(name: &str, value: Value) -> Result<Vec<Self>, String> {
        read(value, name, ["from", "value"], |from| {
            let role = match from.as_str() {
                "human" | "user" => "user",
                "gpt" | "chatgpt" | "assistant" | "model" => "assistant",
                "system" => "system",
                "tool" | "function" | "observation" => "tool",
                _ => {
                    let message = format!(
                        "`from` is `{from}`, but must be human, gpt, system or tool (or user, chatgpt, assistant, model, \
                         function, observation)"
                    );
                    return Err(message);
                }
            };
            Ok(role.to_owned())
        })
    }
}

fn read(
    value: Value,
    name: &str,
    [role, content]: [&str; 2],
    role_of: impl Fn(String) -> Result<String, String>,
) -> Result<Vec<Message>, String> {
    let form =
        || format!("`{name}` must be a list of {{\"{role}\", \"{content}\"}}, each a string");
    let Value::Array(turns) = value else {
        return Err(form());
    };
    let turn = |value| {
        let Value::Object(mut turn) = value else {
            return Err(form());
        };
        Ok(Message {
            role: role_of(text(&mut turn, role).ok_or_else(form)?)?,
            content: text(&mut turn, content).ok_or_else(form)?,
        })
    };
    let messages: Vec<Message> = turns.into_iter().map(turn).collect::<Result<_, _>>()?;
    if !messages.iter().any(Message::is_learned) {
        return Err(format!(
            "`{name}` has no turn of the assistant, so that there is nothing to learn"
        ));
    }
    Ok(messages)
}

fn text(turn: &mut Map<String, Value>, key: &str) -> Option<String> {
    match turn.remove(key)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}
