//! Plugins for Portcullis in Rust.
//!
//! A plugin inspects messages of the Model Context Protocol on their way through the proxy. It can
//! let them pass, refuse or rewrite them, label their exchange and report what it saw. This is a
//! whole one, which refuses calls whose arguments hold a text that the operator chose:
//!
//! ```
//! use portcullis_plugin::{Fault, Manifest, Message, Phase, Plugin, Verdict, json, manifest};
//! use serde::Deserialize;
//!
//! /// What stands in the operator's `config = { marker = "…" }`.
//! #[derive(Deserialize)]
//! struct Marker {
//!     marker: String,
//! }
//!
//! impl Plugin for Marker {
//!     fn describe() -> Manifest {
//!         manifest!().on("tools/call", Phase::Request)
//!     }
//!
//!     fn inspect(&mut self, message: &Message) -> Result<Verdict, Fault> {
//!         let found = json::strings(message.arguments()).any(|string| string.text.contains(&self.marker));
//!         Ok(match found {
//!             true => Verdict::refuse("marker", "the arguments hold a text that must not leave"),
//!             false => Verdict::pass(),
//!         })
//!     }
//! }
//!
//! portcullis_plugin::export!(Marker);
//! # fn main() {}
//! ```
//!
//! It takes a library crate with `crate-type = ["cdylib"]`, the target `wasm32-unknown-unknown` and
//! the linker `wasm-component-ld`, which comes with rustc. `docs/plugins/rust.md` of Portcullis has
//! every step.
//!
//! # What the host gives
//!
//! [`log`], [`clock`], [`random`], [`state`], [`metrics`], [`http`] and [`secrets`]. A plugin imports
//! what it uses of them and nothing else, and the operator grants each. There is no WASI: what the
//! standard library does with files, sockets, threads or the time of day fails here.
//!
//! # What fails
//!
//! An `Err` of [`Plugin::inspect`] and a panic are faults: the message is refused unless the operator
//! wrote `fail-open`. The instance is not used again.
#![deny(missing_docs)]

#[doc(hidden)]
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "plugin",
        pub_export_macro: true,
        export_macro_name: "export_guest",
        default_bindings_module: "portcullis_plugin::bindings",
        additional_derives: [PartialEq, Eq],
    });
}

pub mod clock;
pub mod http;
pub mod json;
pub mod log;
mod manifest;
mod message;
pub mod metrics;
pub mod random;
pub mod secrets;
pub mod state;
mod verdict;

pub use bindings::exports::portcullis::interceptor::guest::{
    Decision, Direction, Finding, Hook, Lifetime, Manifest, Message, Phase, Principal,
    PrincipalKind, Refusal, Target, Verdict,
};
use serde::de::DeserializeOwned;

/// Why a plugin reached no verdict. Every error becomes one by `?`, and so does a text.
pub type Fault = Box<dyn std::error::Error>;

/// A plugin: what the operator's `config` is read into, and what looks at messages.
///
/// A plugin that takes no configuration derives [`serde::Deserialize`] all the same, for a struct
/// without fields: `struct Mine {}`. Fields that are not configuration are `#[serde(skip)]`, and
/// [`Plugin::start`] fills them.
pub trait Plugin: DeserializeOwned + 'static {
    /// What the plugin is, and which messages it is asked about: see [`manifest!`].
    fn describe() -> Manifest;

    /// Called once in every instance, before its first message, when the configuration has been
    /// read: the place for checks that a schema cannot say, and for work that is done once.
    ///
    /// # Errors
    /// Why the plugin cannot work so, for the operator. The plugin is not used then.
    fn start(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// The verdict on one message.
    ///
    /// # Errors
    /// A fault, with a text for the operator. Put nothing of the message into it.
    fn inspect(&mut self, message: &Message) -> Result<Verdict, Fault>;
}

/// Makes a type that is a [`Plugin`] the plugin of this component. Once in a crate.
#[macro_export]
macro_rules! export {
    ($plugin:ty) => {
        const _: () = {
            // An instance has one thread and is never entered twice at a time.
            ::std::thread_local! {
                static PLUGIN: ::std::cell::RefCell<::std::option::Option<$plugin>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }

            struct Exported;

            impl $crate::__private::Guest for Exported {
                fn describe() -> $crate::Manifest {
                    <$plugin as $crate::Plugin>::describe()
                }

                fn start(config: ::std::string::String) -> $crate::__private::Started {
                    let plugin = $crate::__private::start::<$plugin>(&config)?;
                    PLUGIN.set(::std::option::Option::Some(plugin));
                    ::std::result::Result::Ok(())
                }

                fn inspect(message: $crate::Message) -> $crate::__private::Inspected {
                    PLUGIN.with_borrow_mut(|plugin| {
                        $crate::__private::inspect(plugin.as_mut(), &message)
                    })
                }
            }

    $crate::bindings::export_guest!(Exported with_types_in $crate::bindings);
        };
    };
}

/// For [`export!`] alone.
#[doc(hidden)]
pub mod __private {
    use super::{Message, Plugin, Verdict};

    pub use super::bindings::exports::portcullis::interceptor::guest::Guest;

    pub type Started = Result<(), String>;
    pub type Inspected = Result<Verdict, String>;

    pub fn start<P: Plugin>(config: &str) -> Result<P, String> {
        let mut plugin: P =
            serde_json::from_str(config).map_err(|error| format!("`config`: {error}"))?;
        plugin.start().map_err(|fault| fault.to_string())?;
        Ok(plugin)
    }

    pub fn inspect<P: Plugin>(plugin: Option<&mut P>, message: &Message) -> Inspected {
        let plugin = plugin.ok_or("it was asked before it was started")?;
        plugin.inspect(message).map_err(|fault| fault.to_string())
    }
}
