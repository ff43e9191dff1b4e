//! What a plugin is.

use super::{Hook, Lifetime, Manifest, Phase};

/// A [`Manifest`] with the name, the version and the description of the crate that it stands in.
#[macro_export]
macro_rules! manifest {
    () => {
        $crate::Manifest::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
    };
}

impl Manifest {
    /// A plugin that no message meets yet: [`Manifest::on`] says which do. Every message meets a
    /// fresh instance unless [`Manifest::keeps_sessions`] says otherwise.
    pub fn new(name: &str, version: &str, description: &str) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            description: description.into(),
            hooks: Vec::new(),
            lifetime: Lifetime::Message,
            config_schema: None,
            hosts: Vec::new(),
            secrets: Vec::new(),
            once: false,
            options: Vec::new(),
        }
    }

    /// Asks the plugin about one half of the exchanges of a method: `tools/call`, or `*` for every
    /// one.
    pub fn on(mut self, event: &str, phase: Phase) -> Self {
        match self.hooks.iter_mut().find(|hook| hook.phase == phase) {
            Some(hook) => hook.events.push(event.into()),
            None => self.hooks.push(Hook { events: vec![event.into()], phase }),
        }
        self
    }

    /// The messages of one session meet the same instance.
    pub fn keeps_sessions(mut self) -> Self {
        self.lifetime = Lifetime::Session;
        self
    }

    /// Asks the plugin once about each half of an exchange, and not again when another interceptor
    /// replaced the payload: for plugins that count. The operator puts it behind those that replace.
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// The JSON Schema (2020-12) that the operator's `config` has to fit:
    /// `include_str!("config.schema.json")`.
    pub fn config_schema(mut self, schema: &str) -> Self {
        self.config_schema = Some(schema.into());
        self
    }

    /// Asks for a host to send requests to with [`crate::http`]: `api.example.com:443`, or
    /// `http://intranet.example:8080` where it speaks without TLS.
    pub fn host(mut self, host: &str) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Asks for a secret by its name in [`crate::secrets`].
    pub fn secret(mut self, name: &str) -> Self {
        self.secrets.push(name.into());
        self
    }

    /// Has hosts before this version of Portcullis, such as `0.1.0`, refuse to load the plugin.
    pub fn needs_host(mut self, least: &str) -> Self {
        self.options.push(("host".into(), least.into()));
        self
    }
}
