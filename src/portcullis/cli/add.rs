//! `portcullis add`: adds a server that a catalog or the command line names, with its policies.

mod sources;

use std::collections::BTreeMap;

use super::{
    Context, Exit, Usage,
    adding::{AddOptions, ClientOptions, take},
    catalog::Workspace,
    client::{NewConnection, kinds},
};
use crate::manage::init;
use portcullis_catalog::{Named, client_files::ClientKind};
use portcullis_protocol::names::ServerName;
use url::Url;

const USAGE: &str = "portcullis add [OPTIONS] NAME
       portcullis add [OPTIONS] image REFERENCE
       portcullis add [OPTIONS] https://HOST/PATH
       portcullis add [OPTIONS] [NAME] -- COMMAND [ARGUMENT]…";

#[derive(Debug, clap::Args)]
#[command(override_usage = USAGE)]
pub struct Args {
    /// The server: its name in an added catalog (also `CATALOG/NAME` or `catalog://…`), `image` and
    /// the reference of an image, or the URL of a remote server. Before a command: a name for it
    #[arg(value_name = "SERVER", num_args = 1..=2, required_unless_present = "command")]
    server: Vec<String>,
    /// The command that runs the server, behind `--`
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
    /// Name of the server in the config. Default: that of the catalog, the package, the image or
    /// the host
    #[arg(long)]
    name: Option<ServerName>,
    /// Set a variable of the server, for a command and an image; repeatable. Secrets: `--secret`
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Connect this MCP client, too, as `client connect` does, as a client of the group
    #[arg(
        long,
        value_name = "CLIENT",
        value_parser = kinds(),
        conflicts_with_all = ["client", "local_user", "dry_run"]
    )]
    connect: Option<&'static ClientKind>,
    #[command(flatten)]
    clients: ClientOptions,
    #[command(flatten)]
    add_options: AddOptions,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Adds the server.
pub async fn run(mut args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    args.take_name_of_command()?;
    let connection = args.connection(ctx)?;
    if let Some(connection) = &connection {
        connection.check()?;
    }
    let makes_gateway = !ctx.config.exists();
    let mut workspace = Workspace::open(ctx)?;
    let mut offer = match args.server.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => args.named(Named::Command(&args.command))?,
        ["image", reference] => args.image(ctx, &workspace, reference).await?,
        [url] if url.starts_with("https://") || url.starts_with("http://") => {
            let url: Url = url.parse().map_err(|error| Usage(format!("not a URL: {error}")))?;
            args.named(Named::Url(&url))?
        }
        [name] => args.of_catalog(ctx, &workspace, name).await?,
        _ => return Err(Usage(format!("name one server:\n{USAGE}")).into()),
    };
    offer.clients = args.clients.policy(connection.is_some())?;
    let exit = take(ctx, &mut workspace, offer, &args.add_options).await?.1;
    if makes_gateway && ctx.config.exists() {
        init::ignore_state(&workspace.base)?;
    }
    match connection.filter(|_| exit == Exit::Ok) {
        Some(connection) => connection.connect(ctx).await,
        None => Ok(exit),
    }
}

impl Args {
    /// Takes the word before a command as the name of the server.
    fn take_name_of_command(&mut self) -> anyhow::Result<()> {
        if self.command.is_empty() || self.server.is_empty() {
            return Ok(());
        }
        let name = match (self.server.as_slice(), &self.name) {
            ([name], None) => name.parse().map_err(|error| Usage(format!("{error}")))?,
            _ => return Err(Usage(format!("name one server:\n{USAGE}")).into()),
        };
        self.name = Some(name);
        self.server.clear();
        Ok(())
    }

    /// The client to connect.
    fn connection(&self, ctx: &Context) -> anyhow::Result<Option<NewConnection>> {
        let Some(kind) = self.connect else { return Ok(None) };
        if ctx.is_json() {
            return Err(
                Usage("`--connect` prints text: use `client connect` for JSON".into()).into()
            );
        }
        let (group, yes) = (self.clients.group()?, self.add_options.yes);
        Ok(Some(NewConnection { kind, group, yes }))
    }

    fn env(&self) -> BTreeMap<String, String> {
        self.env.iter().cloned().collect()
    }
}
