//! Reading a message.

use std::borrow::Cow;

use serde::de::{Deserialize, DeserializeOwned};

use super::{Fault, Message, Target, json};

impl Message {
    /// The payload, read into a type: a struct of the members that matter, or
    /// [`serde_json::Value`].
    ///
    /// # Errors
    /// The payload is not of that type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        read(&self.payload)
    }

    /// The arguments of a call or a prompt as JSON text, as they stand in the payload; `null` where
    /// there are none.
    pub fn arguments(&self) -> &str {
        json::member(&self.payload, "arguments").unwrap_or("null")
    }

    /// The arguments of a call or a prompt, read into a type.
    ///
    /// # Errors
    /// The arguments are not of that type.
    pub fn read_arguments<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Fault> {
        read(self.arguments())
    }

    /// The whole payload with other strings in the arguments of a call or a prompt, as
    /// [`json::rewrite`] has it; all else stays byte for byte. Nothing where nothing changes.
    pub fn rewrite_arguments(
        &self,
        change: impl FnMut(&json::Str<'_>) -> Option<String>,
    ) -> Option<String> {
        json::rewrite_member(&self.payload, "arguments", change)
    }

    /// The name of the tool that is called, on its server.
    pub fn tool(&self) -> Option<&str> {
        match &self.target {
            Target::Tool(name) => Some(name),
            _ => None,
        }
    }

    /// Whether an interceptor gave the exchange this label before.
    pub fn has_label(&self, label: &str) -> bool {
        self.labels.iter().any(|given| given == label)
    }

    /// The texts of a tool's result: of its blocks of text, and of embedded resources.
    pub fn texts(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let content = json::member(&self.payload, "content").unwrap_or("null");
        json::strings(content).filter(|string| string.key.as_deref() == Some("text")).map(|string| string.text)
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Fault> {
    // Serde's errors quote what they did not like, and faults are logged.
    serde_json::from_str(text).map_err(|error| {
        format!("it is not as expected at line {}, column {}", error.line(), error.column()).into()
    })
}
