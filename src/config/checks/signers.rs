//! Checks signers, and the servers that require them.

use std::collections::HashSet;

use portcullis_provenance::Subject;

use super::Checker;
use crate::{
    Config,
    finding::Code,
    schema_check::{brief, nearest},
};
use portcullis_foundation::json_pointer::child;
use portcullis_upstream::config::Signer;

pub(super) fn check(checker: &mut Checker<'_>, config: &Config) {
    for (name, signer) in &config.signers {
        one(checker, &child("/signers", name), signer);
    }
    for (name, server) in &config.servers {
        let at = child(&child("/servers", name), "signed-by");
        let mut named = HashSet::new();
        for (index, signer) in server.signed_by.iter().enumerate() {
            let at = child(&at, index);
            if !config.signers.contains_key(signer) {
                let names = config.signers.keys().map(|name| name.as_str());
                let mut finding = checker.document.at_value(
                    &at,
                    Code::BadValue,
                    format!("`[signers.{}]` does not exist", brief(signer.as_str())),
                );
                if let Some(near) = nearest(signer.as_str(), names) {
                    finding = finding.label(format!("did you mean `{near}`?"));
                }
                let help = "add it: with `key`, or with `issuer`, `subject` and `trusted-root`";
                checker.add(finding.help(help));
            } else if !named.insert(signer) {
                checker.conflict(&at, "this signer is named twice", "remove one of the two");
            }
        }
        let local = server.image.as_ref().is_some_and(|image| {
            image.starts_with("sha256:")
                || !image.contains('@') && !portcullis_oci::names_host(image)
        });
        if local && !server.signed_by.is_empty() {
            checker.conflict(
                &at,
                "a local image has no registry with signatures",
                "use the image's name with its registry: `HOST/NAME@sha256:…`",
            );
        }
    }
}

fn one(checker: &mut Checker<'_>, at: &str, signer: &Signer) {
    let Signer { key, issuer, subject, trusted_root } = signer;
    if key.is_some() {
        for (name, value) in [("issuer", issuer), ("subject", subject)] {
            if value.is_some() {
                checker.conflict(
                    &child(at, name),
                    format!("`{name}` has no meaning with a `key`"),
                    "a signer is either a key or an identity: define two signers",
                );
            }
        }
        return;
    }
    if issuer.is_none() && subject.is_none() {
        let finding = checker.document.at_key(
            at,
            Code::MissingKey,
            "this signer is neither a key nor an identity",
        );
        checker.add(finding.help(
            "add `key`, the file of a public key, or `issuer`, `subject` and `trusted-root`",
        ));
        return;
    }
    let missing = [
        ("issuer", issuer.is_none()),
        ("subject", subject.is_none()),
        ("trusted-root", trusted_root.is_none()),
    ];
    for (name, _) in missing.iter().filter(|(_, missing)| *missing) {
        let what = format!("an identity needs `{name}`");
        let finding = checker.document.at_key(at, Code::MissingKey, what);
        checker.add(finding.help("write `issuer`, `subject` and `trusted-root`"));
    }
    if let Some(issuer) = issuer
        && !reqwest::Url::parse(issuer).is_ok_and(|url| url.has_host() && url.scheme() == "https")
    {
        checker.bad(
            &child(at, "issuer"),
            "an issuer must be a URL, as in its certificates",
            "such as \"https://token.actions.githubusercontent.com\"",
        );
    }
    if let Some(subject) = subject
        && subject.parse::<Subject>().is_err()
    {
        checker.bad(
            &child(at, "subject"),
            "this would match everybody",
            "set an e-mail address, or a URI, with `*` for parts other than the host or the domain",
        );
    }
}
