//! What the guests in `examples/` share: each does one harm, to whoever sends `harm:NAME`, and lets
//! all else pass.

use std::hint::black_box;

wit_bindgen::generate!({
    path: "../../../plugins/wit",
    world: "plugin",
    pub_export_macro: true,
    export_macro_name: "export_guest",
    default_bindings_module: "harms",
});

pub use exports::portcullis::interceptor::guest::*;
pub use portcullis::interceptor::{clock, http, log, metrics, random, secrets, state};

/// One harm. What it does not say is honest.
pub trait Harm {
    const NAME: &str;

    fn describe() -> Manifest {
        manifest(Self::NAME)
    }

    fn start(_config: &str) -> Result<(), String> {
        Ok(())
    }

    /// Only for a message that asks for it.
    fn harm(_message: &Message) -> Result<Verdict, String> {
        Ok(verdict(Decision::Pass))
    }
}

pub fn manifest(name: &str) -> Manifest {
    Manifest {
        name: name.into(),
        version: "0.1.0".into(),
        description: "Means harm".into(),
        hooks: vec![Hook { events: vec!["tools/call".into()], phase: Phase::Request }],
        lifetime: Lifetime::Message,
        config_schema: None,
        hosts: vec![],
        secrets: vec![],
        once: false,
        options: vec![],
    }
}

pub fn verdict(decision: Decision) -> Verdict {
    Verdict { decision, labels: vec![], findings: vec![] }
}

pub fn refuse(reason: impl Into<String>) -> Verdict {
    let refusal = Refusal { code: "told".into(), reason: reason.into(), detail: None };
    verdict(Decision::Refuse(refusal))
}

/// The verdict on whatever comes.
pub fn inspect<H: Harm>(message: &Message) -> Result<Verdict, String> {
    match message.payload.contains(&format!("harm:{}\"", H::NAME)) {
        true => H::harm(message),
        false => Ok(verdict(Decision::Pass)),
    }
}

pub fn spin() -> ! {
    loop {
        black_box(());
    }
}

/// Makes a harm the guest of its component.
#[macro_export]
macro_rules! guest {
    ($harm:ident) => {
        impl $crate::Guest for $harm {
            fn describe() -> $crate::Manifest {
                <$harm as $crate::Harm>::describe()
            }

            fn start(config: String) -> Result<(), String> {
                <$harm as $crate::Harm>::start(&config)
            }

            fn inspect(message: $crate::Message) -> Result<$crate::Verdict, String> {
                $crate::inspect::<$harm>(&message)
            }
        }

        $crate::export_guest!($harm with_types_in $crate);
    };
}
