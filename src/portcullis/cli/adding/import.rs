//! Import of the servers of an offer into the text of the config, one by one.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::Context as _;

use super::{
    AddOptions, Offer,
    image::{pin, reject_downgrade},
    options::SecretFrom,
    planned_server::{PlannedServer, Policies, Replaced},
    policy_files::{self, ConfiguredPolicyFiles},
};
use crate::{
    cli::{Context, Usage, catalog::Workspace, exit::reports},
    manage::{new_files::PlannedFiles, server_entries::policies_folder},
};
use portcullis_catalog::{
    Kind, Location, Names, Problem, Run, Server, brief,
    lock::ServerPin,
    write::{self, ExistingEntry, add, names},
};
use portcullis_config::{Config, Diagnostics, Loaded};
use portcullis_upstream::images;

/// Maximum bytes of tool names that the lock file keeps for one server.
const MAX_TOOLS_BYTES: usize = 256 << 10;

/// Import of the servers of one offer into the config.
pub struct Import<'a> {
    ctx: &'a Context,
    workspace: &'a Workspace,
    add_options: &'a AddOptions,
    secrets: Vec<SecretFrom<'a>>,
    /// Servers whose enabled tools `--tools` lists.
    listed: BTreeSet<String>,
    source: String,
    source_digest: Option<String>,
    /// Config before the import.
    pub before: Loaded,
    /// Names of the servers in the config before the import.
    there: Vec<String>,
    /// Folder that policies are written to.
    pub folder: Option<PathBuf>,
    pub others: ConfiguredPolicyFiles,
    /// Text of the config with the imported servers.
    pub text: String,
    taken_names: Names,
    replaced: BTreeSet<String>,
}

impl<'a> Import<'a> {
    /// Reads the config and the options.
    ///
    /// # Errors
    /// [`Usage`] for invalid options; another error if the config is invalid.
    pub fn begin(
        ctx: &'a Context,
        workspace: &'a Workspace,
        offer: &Offer,
        add_options: &'a AddOptions,
    ) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(&ctx.config) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("cannot read {}", ctx.config.display()))?,
        };
        // An invalid config is never changed.
        let before = portcullis_config::parse(&ctx.config, &text).map_err(reports)?;
        let there = names(&text)?;
        let taken_names = Names::of(there.iter().map(String::as_str));
        if let Some(name) =
            add_options.replace.iter().find(|name| !name.is_empty() && !there.contains(name))
        {
            let text = format!("the config has no server `{}` to replace", brief(name));
            return Err(Usage(text).into());
        }
        let secrets = add_options.secrets()?;
        let offered = |name: &str| offer.entries.iter().any(|entry| entry.name == name);
        if let Some(name) =
            secrets.iter().find_map(|(server, ..)| server.filter(|name| !offered(name)))
        {
            let text = format!("`{}` of `--secret` is not a server of {}", brief(name), offer.name);
            return Err(Usage(text).into());
        }
        Ok(Self {
            ctx,
            workspace,
            add_options,
            secrets,
            listed: add_options.tool_lists()?.into_keys().collect(),
            source: offer.source.clone(),
            source_digest: offer.digest.clone(),
            folder: policies_folder(&before.config, &workspace.base),
            others: policy_files::files(&before.config, &workspace.base),
            before,
            there,
            text,
            taken_names,
            replaced: BTreeSet::new(),
        })
    }

    /// Imports a server.
    ///
    /// # Errors
    /// The problem that prevents the import; the text of the config is then unchanged.
    pub async fn server(
        &mut self,
        server: Server,
        place: Location,
    ) -> Result<PlannedServer, Problem> {
        let (mut server, add_options) = (server, self.add_options);
        let problem = |text: String| Problem::at(place, text);
        let unwritten = |error: write::EntryError| problem(error.to_string());
        let name = server.name.clone();
        let again =
            (add_options.replaces() || add_options.names(&name)) && self.there.contains(&name);
        let entry = match again {
            true => ExistingEntry::of(&self.text, &name).map_err(unwritten)?,
            false => None,
        };
        let mut old = self.workspace.lock.servers.get(&name).cloned();
        let stands = |of: &String, from: &mut String| {
            entry.as_ref().and_then(|entry| entry.reference(of)) == Some(from)
        };
        if let Some(old) = &mut old {
            old.confirmed.retain(stands);
            old.unconfirmed.retain(stands);
        }
        let written = old.as_ref().and_then(|old| old.entry.as_ref());
        let edited = entry.as_ref().is_some_and(|entry| Some(&entry.digest()) != written);
        if let Some(entry) = &entry {
            if !self.replaced.insert(name.clone()) {
                return Err(problem(format!("there are two that would be `{name}` here")));
            }
            let moved = entry.moved(&server).map_err(unwritten)?;
            add_options
                .may_replace(&name, old.as_ref(), edited, moved.as_ref(), &self.source)
                .map_err(problem)?;
        } else {
            self.taken_names.take(&name).map_err(|error| problem(error.to_string()))?;
        }
        self.permit_named(&mut server)?;
        let image = pin(self.ctx, self.workspace, &mut server).await?;
        reject_downgrade(self.workspace, &server, add_options.allow_downgrade)?;
        let mut tools = None;
        if let (Some(old), Some(_)) = (&old, &entry) {
            keep_references(&mut server, old);
            if !self.listed.contains(&server.original) {
                tools = keep_disabled(&mut server.only, old.tools.as_deref());
            }
        }
        let replaced = match &entry {
            Some(entry) => {
                let entry = entry.replace(&self.text, &server).map_err(unwritten)?;
                Some(Replaced { entry, edited, tools })
            }
            None => None,
        };
        let text = match &replaced {
            Some(Replaced { entry: Some(entry), .. }) => entry.text.clone(),
            Some(_) => self.text.clone(),
            None => add(&self.text, &server).map_err(unwritten)?,
        };
        // Findings of the config's own checks are problems of the import.
        portcullis_config::parse(&self.ctx.config, &text).map_err(|Diagnostics(found)| {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            problem(found.join("; "))
        })?;
        // All servers share one lock file.
        if server.only.iter().flatten().map(String::len).sum::<usize>() > MAX_TOOLS_BYTES {
            return Err(problem(format!(
                "the names of the tools of `{name}` have more than {} KiB, too much for the lock file",
                MAX_TOOLS_BYTES >> 10
            )));
        }
        let (image_digest, image_id) = match &server.run {
            Run::Image { image, .. } => (image.digest.clone(), image.id.clone()),
            Run::Command { .. } | Run::Remote { .. } => (None, None),
        };
        let locked = ServerPin {
            source: Some(self.source.clone()),
            source_digest: self.source_digest.clone(),
            image,
            image_digest,
            image_id,
            tools: server.only.clone(),
            entry: ExistingEntry::of(&text, &name).map_err(unwritten)?.map(|new| new.digest()),
            ..ServerPin::default()
        };
        let was = previous_content(self.workspace, &self.before.config, &name);
        let (perhaps, elsewhere) = (BTreeSet::new(), Vec::new());
        let policies = Policies::Nowhere;
        let mut planned = PlannedServer {
            server,
            old,
            locked,
            was,
            replaced,
            policies,
            client_files: PlannedFiles::default(),
            perhaps,
            elsewhere,
        };
        planned.permit_confirmed();
        planned.decide_policies(self.folder.as_deref(), &self.others, add_options);
        // A pending prompt may confirm a secret, but does not make an existing file the server's.
        let may_be_confirmed =
            add_options.asks() && !matches!(planned.policies, Policies::There(_));
        if let Some(why) = planned.hindered().filter(|_| !may_be_confirmed) {
            return Err(problem(why));
        }
        self.text = text;
        Ok(planned)
    }

    /// Permits the references given with `--secret`.
    fn permit_named(&self, server: &mut Server) -> Result<(), Problem> {
        let original = server.original.clone();
        let own = self.secrets.iter().filter(|(of, ..)| of.is_none_or(|of| of == original));
        for (_, name, from) in own {
            let mut asks = false;
            for (reference, secret) in server.references_mut() {
                // A header can also be named by the variable in it.
                asks |= reference == name || secret.from == *from;
                secret.permitted |= secret.from == *from;
            }
            if !asks {
                return Err(Problem::of(format!(
                    "`{}` of `--secret` is not a secret or header that `{}` asks for",
                    brief(name),
                    server.name
                )));
            }
        }
        Ok(())
    }
}

/// Restores the references that the operator gave at an earlier import, unless others are named
/// now. Removes the notes about references that the server no longer has.
fn keep_references(server: &mut Server, old: &ServerPin) {
    let mut gone = Vec::new();
    for (name, secret) in server.references_mut() {
        let earlier = old.confirmed.get(name).or_else(|| old.unconfirmed.get(name));
        if let Some(earlier) =
            earlier.filter(|earlier| **earlier != secret.from && !secret.permitted)
        {
            gone.push(std::mem::replace(&mut secret.from, earlier.clone()));
        }
    }
    server.notes.retain(|note| {
        let about = |from: &String| note.text.contains(&format!("`{from}`"));
        note.kind == Kind::LeftOut || !gone.iter().any(about)
    });
}

/// Keeps disabled tools disabled if the new description enables them. Returns the difference.
pub fn keep_disabled(only: &mut Option<Vec<String>>, was: Option<&[String]>) -> Option<String> {
    let described = only.clone();
    if let Some(was) = was {
        let both = described.as_deref().unwrap_or(was).iter().filter(|tool| was.contains(tool));
        *only = Some(both.cloned().collect());
    }
    let set = |tools: Option<&[String]>| {
        tools.map(|tools| tools.iter().cloned().collect::<BTreeSet<String>>())
    };
    let shown = |tools: Option<&[String]>| match tools {
        Some(tools) => format!("[{}]", tools.join(", ")),
        None => "all".to_owned(),
    };
    if set(described.as_deref()) != set(only.as_deref()) {
        let (stays, described) = (shown(only.as_deref()), shown(described.as_deref()));
        Some(format!(
            "tools left on: stays {stays}, which is yours; the description says {described}"
        ))
    } else if set(was) != set(only.as_deref()) {
        let (is, was) = (shown(only.as_deref()), shown(was));
        Some(format!("tools left on: {is} instead of {was}"))
    } else {
        None
    }
}

/// Content of a server's image before the import: from the lock file, else from the config.
fn previous_content(workspace: &Workspace, config: &Config, name: &str) -> Option<String> {
    if let Some(content) = workspace.lock.servers.get(name).and_then(ServerPin::content) {
        return Some(content.to_owned());
    }
    let (_, server) = config.servers.iter().find(|(configured, _)| configured.as_str() == name)?;
    let fixed = images::fixed(server.image.as_deref()?).ok()??;
    Some(fixed.meaning.as_str().to_owned())
}
