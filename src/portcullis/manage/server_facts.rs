//! Facts about a server before it is started, and the decisions of policies about its start.

use serde::Serialize;

use super::servers::launch_secrets;
use portcullis_config::Loaded;
use portcullis_policy::{Action, Part, Start};
use portcullis_protocol::{names::ServerName, refusal::Rule};
use portcullis_runtime::{
    container::{self, Deviation},
    process::LaunchFailure,
    sandbox,
};
use portcullis_upstream::{Launcher, Placement, config::Server};

/// Decision of policies about one part of the start.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartDecision {
    pub action: &'static str,
    pub target: String,
    pub allowed: bool,
    /// The decision as a sentence.
    pub why: String,
    pub rules: Vec<Rule>,
}

/// Facts about a server before it is started.
pub struct ServerFacts {
    pub placement: Placement,
    pub profile: Vec<(String, String)>,
    pub deviations: Vec<Deviation>,
    pub digest: Option<String>,
    /// Missing signature of its image that prevents a start whatever policies say.
    pub unsigned: Option<String>,
    /// Decisions about each part of the start, or why the policies cannot be loaded.
    pub decisions: Result<Vec<PartDecision>, String>,
}

impl ServerFacts {
    /// The facts of a server, and the decisions of policies about a start at a time; `None`: now.
    ///
    /// # Errors
    /// Its profile or its program is invalid.
    pub async fn of(
        loaded: &Loaded,
        launcher: &Launcher,
        name: &ServerName,
        settings: &Server,
        at: Option<jiff::Timestamp>,
    ) -> anyhow::Result<Self> {
        let placement = launcher.placement(settings);
        let (mut profile, mut deviations) = (Vec::new(), Vec::new());
        if let Placement::Remote { url } = &placement {
            profile.push(("url".to_owned(), url.clone()));
        } else {
            let mut spec = launcher.spec_without_secrets(name, settings);
            if spec.image.is_none() {
                // The id of a packed program's image is known only after packing.
                spec.image = Some(format!("sha256:{}", "0".repeat(64)));
            }
            // Keys that loosen the profile are the same in every runtime.
            let container = container::Profile::of(&spec)?;
            deviations = container.deviations();
            profile = match &placement {
                Placement::Sandbox { .. } => {
                    sandbox::facts(&settings.resources, &settings.hardening)
                }
                _ => container.describe(),
            };
        }
        // As a start would pin it; if that fails now, policies are evaluated without it.
        let pinned =
            launcher.images.pin(&launcher.engine.now(), name, settings).await.ok().flatten();
        let mut program = launcher.program_of(name, settings, pinned.as_ref())?;
        let mut unsigned = None;
        if let Some(pinned) = &pinned {
            match launcher.signed(name, settings, pinned).await {
                Ok(signed) => program.signed = signed,
                Err(LaunchFailure { what, .. }) => unsigned = Some(what),
            }
        }
        if let Some(hashed) = launcher.hashed(settings).await {
            program.digest = Some(hashed.digest);
        }
        let digest = program.digest.clone();
        let at = at.unwrap_or_else(jiff::Timestamp::now);
        let program = program.for_policies(&placement);
        let decisions = decide_launch(loaded, name, settings, &program, at);
        Ok(Self { placement, profile, deviations, digest, unsigned, decisions })
    }

    /// Whether its signatures and policies permit its start.
    pub fn allowed(&self) -> bool {
        let all = |decisions: &Vec<PartDecision>| decisions.iter().all(|one| one.allowed);
        self.unsigned.is_none() && self.decisions.as_ref().is_ok_and(all)
    }
}

/// Evaluates the policies of the config, as a proxy would before it starts the server.
fn decide_launch(
    loaded: &Loaded,
    server: &ServerName,
    settings: &Server,
    program: &portcullis_policy::Program,
    at: jiff::Timestamp,
) -> Result<Vec<PartDecision>, String> {
    let engine = portcullis_policy::Engine::open(
        portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir),
        &loaded.base,
    )
    .map_err(|found| found.to_string().lines().next().unwrap_or_default().to_owned())?;
    let start =
        Start { server, program, url: settings.url.as_deref(), secrets: launch_secrets(settings) };
    let decision = |Part { action, target, outcome }| {
        let allowed = outcome.permits_alone();
        let refused = (action == Action::Launch && !allowed)
            .then(|| engine.refused_deviations(server, program))
            .flatten();
        let why = match refused {
            Some(refused) => format!(
                "no policy permits it with {}; {} permits it without",
                refused.quoted('`'),
                refused.places()
            ),
            None => outcome.explain_alone(),
        };
        PartDecision { action: action.as_str(), target, allowed, why, rules: outcome.rules }
    };
    Ok(engine.decide_start_at(&start, at).into_iter().map(decision).collect())
}
