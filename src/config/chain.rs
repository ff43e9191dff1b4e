//! Chain of a config: the entries of the file, and the interceptors that are on by default.

use std::borrow::Cow;

use serde::Serialize;

use portcullis_chain::Mode;
use portcullis_interceptors::{
    EntrySettings, InterceptorEntry, InterceptorKind, rate_limit, schema, secrets,
};

use super::Config;

/// Timeout in milliseconds of an interceptor that is on by default. The largest messages take
/// seconds, and no shorter time was configured.
const DEFAULT_DEADLINE_MS: u64 = 10_000;

/// The interceptors of every chain, behind its rate limits. No entry of a file changes them.
pub(super) const BUILTIN: [&str; 2] = ["policy", "argument-names"];

/// Interceptor of the chain.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    pub entry: Cow<'a, InterceptorEntry>,
    /// Index of its entry in the file. `None`: it is on by default.
    pub at: Option<usize>,
}

/// Interceptor of the chain, as `check` and `server inspect` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberView {
    pub name: String,
    pub mode: Mode,
    /// Whether it is on without an entry in the config.
    pub default: bool,
}

impl Member<'_> {
    /// Name, with what is unusual: `schema (default)`, `secrets (audit)`, `schema (off)`.
    pub fn shown(&self) -> String {
        let name = self.entry.name();
        match (self.entry.settings.mode, self.at) {
            (Mode::Audit, _) => format!("{name} (audit)"),
            (Mode::Off, _) => format!("{name} (off)"),
            (Mode::Enforce, None) => format!("{name} (default)"),
            (Mode::Enforce, Some(_)) => name.to_owned(),
        }
    }
}

impl Config {
    /// Chain in order, without [`BUILTIN`]: rate limits first, then defaults, then the entries of the
    /// file. An entry replaces the default for the same `use`, even if it is off.
    pub fn chain(&self) -> Vec<Member<'_>> {
        let file = self.interceptors.iter().enumerate();
        let file = file.map(|(at, entry)| Member { entry: Cow::Borrowed(entry), at: Some(at) });
        let defaults = self.defaults().into_iter();
        let defaults = defaults.map(|entry| Member { entry: Cow::Owned(entry), at: None });
        let (mut chain, rest): (Vec<_>, Vec<_>) =
            defaults.chain(file).partition(|member| member.entry.is_rate_limit());
        chain.extend(rest);
        chain
    }

    /// Whole chain with [`BUILTIN`], as text.
    pub fn chain_in_words(&self) -> String {
        let chain = self.chain();
        let first = chain.iter().filter(|member| member.entry.is_rate_limit()).count();
        let mut names: Vec<String> = chain.iter().map(Member::shown).collect();
        names.splice(first..first, BUILTIN.map(str::to_owned));
        names.join(", ")
    }

    /// Same as data.
    pub fn chain_view(&self) -> Vec<MemberView> {
        let chain = self.chain();
        let first = chain.iter().filter(|member| member.entry.is_rate_limit()).count();
        let mut shown: Vec<MemberView> = chain
            .iter()
            .map(|member| MemberView {
                name: member.entry.name().to_owned(),
                mode: member.entry.settings.mode,
                default: member.at.is_none(),
            })
            .collect();
        let builtin = BUILTIN.map(str::to_owned);
        let builtin = builtin.map(|name| MemberView { name, mode: Mode::Enforce, default: true });
        shown.splice(first..first, builtin);
        shown
    }

    /// Size in bytes of the largest message that the limits permit.
    pub(super) fn longest_message(&self) -> usize {
        self.limits.request_bytes.max(self.limits.response_bytes)
    }

    /// Default interceptors whose `use` no entry of the file has.
    fn defaults(&self) -> Vec<InterceptorEntry> {
        let kinds = [
            InterceptorKind::RateLimit(rate_limit::Config::default()),
            InterceptorKind::Schema(schema::Config::default()),
            // Every message within the limits is short enough to be scanned.
            InterceptorKind::Secrets(secrets::Config {
                max_bytes: self.longest_message(),
                ..secrets::Config::default()
            }),
        ];
        let missing = |kind: &InterceptorKind| {
            !self.interceptors.iter().any(|entry| entry.kind.as_str() == kind.as_str())
        };
        let settings =
            EntrySettings { deadline_ms: Some(DEFAULT_DEADLINE_MS), ..EntrySettings::default() };
        let kinds = kinds.into_iter().filter(missing);
        kinds.map(|kind| InterceptorEntry { settings: settings.clone(), kind }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn chain(text: &str) -> String {
        crate::parse(Path::new("/x/portcullis.toml"), text).unwrap().config.chain_in_words()
    }

    #[test]
    fn schema_secrets_and_a_rate_limit_are_on_by_default() {
        let entry = |kind: &str| format!("[[interceptors]]\nuse = \"{kind}\"\n");
        let off = |kind: &str| format!("{}mode = \"off\"\n", entry(kind));
        let all = ["rate-limit", "schema", "secrets"];
        for (text, expected) in [
            (
                String::new(),
                "rate-limit (default), policy, argument-names, schema (default), secrets (default)",
            ),
            (
                off("schema"),
                "rate-limit (default), policy, argument-names, secrets (default), schema (off)",
            ),
            (
                format!("{}{}", entry("secrets"), entry("schema")),
                "rate-limit (default), policy, argument-names, secrets, schema",
            ),
            (
                format!("{}mode = \"audit\"\n{}", entry("schema"), entry("rate-limit")),
                "rate-limit, policy, argument-names, secrets (default), schema (audit)",
            ),
            (
                all.map(off).concat(),
                "rate-limit (off), policy, argument-names, schema (off), secrets (off)",
            ),
        ] {
            assert_eq!(chain(&text), expected, "{text}");
        }
    }
}
