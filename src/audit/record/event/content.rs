//! Fields of events: how their texts are scrubbed and found, and their lists cut.

use std::net::SocketAddr;

use jiff::Timestamp;

use super::super::shared::{Decision, Era, Rule, Transport};
use crate::line::Seq;
use portcullis_protocol::{claims::Attested, names::DecisionId};

/// Content of an event: a field, or a struct of fields. The defaults are those of a field that has
/// neither a text nor a list.
pub(in super::super) trait Content {
    /// Passes every text to `change` that is not a word of these types.
    fn texts(&mut self, _change: &mut dyn FnMut(&mut String)) {}

    /// Cuts every list to `most` members.
    fn shorten(&mut self, _most: usize) {}

    /// The field itself, if it is a text.
    fn text(&self) -> Option<&str> {
        None
    }

    /// Text of the struct's field with this name, also in a struct within.
    fn find(&self, _name: &str) -> Option<&str> {
        None
    }
}

impl Content for String {
    fn texts(&mut self, change: &mut dyn FnMut(&mut String)) {
        change(self);
    }

    fn text(&self) -> Option<&str> {
        Some(self)
    }
}

impl<T: Content> Content for Option<T> {
    fn texts(&mut self, change: &mut dyn FnMut(&mut String)) {
        self.iter_mut().for_each(|content| content.texts(change));
    }

    fn text(&self) -> Option<&str> {
        self.as_ref()?.text()
    }
}

impl<T: Content> Content for Vec<T> {
    fn texts(&mut self, change: &mut dyn FnMut(&mut String)) {
        self.iter_mut().for_each(|member| member.texts(change));
    }

    fn shorten(&mut self, most: usize) {
        self.truncate(most);
    }
}

/// `asks` is not among the texts: it has words of these types.
impl Content for Rule {
    fn texts(&mut self, change: &mut dyn FnMut(&mut String)) {
        change(&mut self.id);
        self.file.iter_mut().chain(&mut self.reason).for_each(change);
    }
}

impl Content for Attested {
    fn texts(&mut self, change: &mut dyn FnMut(&mut String)) {
        change(&mut self.by);
        change(&mut self.of_type);
    }
}

/// Types without texts and lists.
macro_rules! plain {
    ($($type:ty),*) => { $(impl Content for $type {})* };
}

plain!(bool, u16, u32, u64, i32, i64, Timestamp, SocketAddr, DecisionId, Seq);
plain!(Decision, Era, Transport);

/// Defines structs of events with their traits. [`Content`] visits every field. `summary` has the
/// format and the arguments of the one-line text, in which the fields are variables.
macro_rules! content {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
        $(summary $summary:tt;)?
    )*) => {$(
        #[derive(
            Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        $(#[$meta])*
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl Content for $name {
            fn texts(&mut self, change: &mut dyn FnMut(&mut String)) {
                $(self.$field.texts(change);)*
            }

            fn shorten(&mut self, most: usize) {
                $(self.$field.shorten(most);)*
            }

            fn find(&self, name: &str) -> Option<&str> {
                $(if let Some(text) = self.$field.find(name) {
                    return Some(text);
                })*
                match name {
                    $(stringify!($field) => self.$field.text(),)*
                    _ => None,
                }
            }
        }

        $crate::record::event::content::summary! { $name { $($field)* } $($summary)? }
    )*};
}

macro_rules! summary {
    ($name:ident { $($field:ident)* }) => {};
    ($name:ident { $($field:ident)* } ($($summary:tt)*)) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                #[allow(unused_variables, reason = "a summary has some of the fields")]
                let Self { $($field),* } = self;
                write!(f, $($summary)*)
            }
        }
    };
}

pub(super) use {content, summary};

/// `before` and the value, if there is one.
pub(super) fn then(before: &str, value: &Option<impl std::fmt::Display>) -> String {
    value.as_ref().map(|value| format!("{before}{value}")).unwrap_or_default()
}

/// `before` and the names, if there are any.
pub(super) fn names(before: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{before}{}", names.join(", ")) }
}
