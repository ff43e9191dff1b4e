//! `portcullis server verify`: gets the signatures of a server's image from its registry now.

use portcullis_provenance::{By, Provenance, Rejected, Signed, SignedContent};
use serde_json::{Value, json};

use super::{Context, Exit};
use crate::manage::servers::{configured, launcher, signatures};
use portcullis_config::Loaded;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::SignedBy;

pub(super) async fn run(ctx: &Context, loaded: &Loaded, name: &ServerName) -> anyhow::Result<Exit> {
    let settings = configured(loaded, name)?;
    let signers = &loaded.config.signers;
    anyhow::ensure!(!signers.is_empty(), "the config has no `[signers]`: no signature is accepted");
    let signatures = signatures(loaded)?;
    let launcher = launcher(loaded).await;
    let pinned = launcher.images.pin(&launcher.engine.now(), name, settings).await?;
    let Some(pinned) = pinned else {
        anyhow::bail!("server `{name}` has no image, so it has no signatures");
    };
    let Some(reference) = &pinned.reference else {
        anyhow::bail!(
            "the image `{}` of `{name}` is of this machine, and has no registry in which signatures \
             could be",
            pinned.name
        );
    };
    let Provenance { signed, rejected } = {
        let _progress = ctx.progress("asking the registry");
        signatures.look(launcher.images.client()?, reference).await?
    };
    let by = SignedBy::from(&*signed);
    let required: Vec<&str> = settings.signed_by.iter().map(|signer| signer.as_str()).collect();
    let holds =
        required.is_empty() || by.signers.iter().any(|signer| required.contains(&signer.as_str()));
    if ctx.is_json() {
        ctx.json(&json!({
            "server": name,
            "image": reference.to_string(),
            "signedBy": required,
            "holds": holds,
            "signed": signed.iter().map(shown).collect::<Vec<_>>(),
            "rejected": rejected.iter().map(refused).collect::<Vec<_>>(),
        }))?;
    } else {
        ctx.line(format_args!("image {reference}"))?;
        let rows = signed.iter().map(|one| {
            let (what, who) = (what(one), who(one));
            [one.by.name().to_owned(), what.to_owned(), who]
        });
        ctx.table(&["SIGNER", "WHAT", "WHO"], rows)?;
        for Rejected { at, why } in &rejected {
            let at = at.map_or_else(String::new, |at| format!(" {at}"));
            ctx.line(format_args!("does not count{at}: {why}"))?;
        }
        if !holds {
            ctx.line(format_args!("none of `signed-by` signed it: {}", required.join(", ")))?;
        } else if by.signers.is_empty() {
            ctx.line("no signer of `[signers]` signed it, and no signature is required")?;
        }
    }
    Ok(if holds { Exit::Ok } else { Exit::Findings })
}

fn what(signed: &Signed) -> &str {
    match &signed.what {
        SignedContent::Signature => "signature",
        SignedContent::Attestation { predicate_type, .. } => predicate_type,
    }
}

fn who(signed: &Signed) -> String {
    match &signed.by {
        By::Key { .. } => "key".to_owned(),
        By::Identity { issuer, subject, .. } => format!("{subject} ({issuer})"),
    }
}

fn shown(signed: &Signed) -> Value {
    let mut shown = json!({
        "signer": signed.by.name(), "what": what(signed), "at": signed.at.to_string(),
    });
    if let By::Identity { issuer, subject, .. } = &signed.by {
        shown["issuer"] = issuer.as_str().into();
        shown["subject"] = subject.as_str().into();
    }
    if let SignedContent::Attestation { predicate: Some(predicate), .. } = &signed.what {
        shown["predicate"] = predicate.clone();
    }
    shown
}

fn refused(rejected: &Rejected) -> Value {
    let at = rejected.at.map(|at| at.to_string());
    json!({ "at": at, "why": rejected.why.to_string() })
}
