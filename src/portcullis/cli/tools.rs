//! `portcullis tools`: tools as a client sees them, through the whole chain. Uses the local socket
//! of the running proxy. If none runs, a proxy is started for this request only.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    Context, Exit, Usage,
    proxy_client::{Located, ProxyArgs},
    server::show_log_end,
    start_failure::reported,
};
use crate::manage::{
    one_shot,
    servers::current_user,
    tool_lists::{acting, missing, nothing_listed},
};
use portcullis_config::Loaded;
use portcullis_gateway::{GatewayBuilder, Purpose, admin, front::http::AS};
use portcullis_protocol::{
    codec::{Frame, era},
    exchange::{Method, Revision, View},
    identity::{Keyring, Principal},
    names::ClientName,
    refusal::Refusal,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Act as this client (`anonymous` for a caller without a key). Default: the local user
    #[arg(long = "as", value_name = "CLIENT", global = true)]
    client: Option<String>,
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    proxy_args: ProxyArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the tools that the client may see
    Ls {
        /// Print only the names
        #[arg(long)]
        short: bool,
    },
    /// Call a tool
    Call {
        /// The tool, as `tools ls` names it
        tool: String,
        /// The arguments, as a JSON object
        #[arg(default_value = "{}")]
        arguments: String,
    },
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let (method, mut params, name) = match &args.verb {
        Verb::Ls { .. } => (Method::TOOLS_LIST, json!({}), None),
        Verb::Call { tool, arguments } => {
            let arguments: Value = serde_json::from_str(arguments)
                .map_err(|error| Usage(format!("the arguments are not JSON: {error}")))?;
            if !arguments.is_object() {
                return Err(Usage("the arguments must be a JSON object".into()).into());
            }
            let params = json!({ "name": tool, "arguments": arguments });
            (Method::TOOLS_CALL, params, Some(tool.as_str()))
        }
    };
    params["_meta"] = era::own_meta();
    let text = Frame::request(1, method, params.to_string().as_bytes());
    let (answer, states) = {
        let _progress = ctx.progress("asking the proxy");
        match args.proxy_args.proxy(ctx).await? {
            Located::Running(proxy, _) => {
                let mut headers = vec![
                    ("mcp-protocol-version", Revision::LATEST_MODERN.as_str().to_owned()),
                    ("mcp-method", method.to_owned()),
                ];
                if let Some(name) = name {
                    headers.push(("mcp-name", era::header_text(name)));
                }
                if let Some(client) = &args.client {
                    headers.push((AS, client.clone()));
                }
                let answer = proxy.mcp(&headers, text).await?;
                // A user without the operator role gets the list without the states.
                let states = if name.is_none() && is_result(&answer) {
                    proxy.get_json("/v1/servers").await.unwrap_or_default()
                } else {
                    Vec::new()
                };
                (answer, states)
            }
            Located::Alone(loaded) => {
                in_new_proxy(&loaded, args.client.as_deref(), text, ctx).await?
            }
        }
    };
    let answer: Value =
        serde_json::from_slice(&answer).context("the proxy's answer is not JSON")?;
    let client = args.client.as_deref();
    let refused = Refusal::read_tool_result(&answer["result"])
        .map(|(message, data)| json!({ "message": message, "data": data }));
    if let Some(error) = answer.get("error").or(refused.as_ref()) {
        let is_own_list = name.is_none() && client.is_none();
        return print_error(error, is_own_list, ctx);
    }
    let result = &answer["result"];
    let Verb::Ls { short } = args.verb else { return print_result(result, ctx) };
    print_list(result, short, ctx)?;
    let missing = missing(&states);
    missing.iter().for_each(|missing| ctx.note(missing));
    let is_empty = result["tools"].as_array().is_some_and(Vec::is_empty);
    if missing.is_empty() && is_empty {
        ctx.note(nothing_listed(client, &states));
    }
    Ok(if missing.is_empty() { Exit::Ok } else { Exit::Failure })
}

/// Prints an error response. `is_own_list`: whether it answers a list of the local user.
fn print_error(error: &Value, is_own_list: bool, ctx: &Context) -> anyhow::Result<Exit> {
    if ctx.is_json() {
        ctx.json(error)?;
    } else {
        ctx.note(error["message"].as_str().unwrap_or("refused"));
        if is_own_list && error["data"]["code"] == "policy-denied" {
            ctx.note(format_args!("You act as {}; `--as CLIENT` selects a client.", acting(None)));
            let user = current_user().user.unwrap_or_else(|| "USER".to_owned());
            ctx.note(format_args!(
                "A new gateway permits nothing to its local user. Permit read-only tools with \
                 `portcullis policy new read-only --local-user {user} --server SERVER --dir policies`."
            ));
        }
    }
    // Only the proxy's errors have a decision id.
    let code = error["data"]["decision"].as_str().and(error["data"]["code"].as_str());
    let refused = code.is_some_and(|code| {
        !matches!(
            code,
            "server-unavailable"
                | "server-circuit-open"
                | "server-timeout"
                | "server-overloaded"
                | "server-misbehaved"
        )
    });
    Ok(if refused { Exit::Denied } else { Exit::Failure })
}

/// Prints the result of a call.
fn print_result(result: &Value, ctx: &Context) -> anyhow::Result<Exit> {
    if ctx.is_json() {
        ctx.json(result)?;
    } else {
        for item in result["content"].as_array().into_iter().flatten() {
            match item["text"].as_str() {
                Some(text) => {
                    for line in text.lines() {
                        ctx.line(line)?;
                    }
                }
                None => ctx.json_line(item)?,
            }
        }
    }
    Ok(if result["isError"] == true { Exit::Failure } else { Exit::Ok })
}

/// Prints a list of tools; `short`: only their names.
fn print_list(result: &Value, short: bool, ctx: &Context) -> anyhow::Result<()> {
    if ctx.is_json() {
        return Ok(ctx.json(result)?);
    }
    let tools = result["tools"].as_array().into_iter().flatten();
    if !short {
        return Ok(ctx.table(&HEADER, tools.map(row))?);
    }
    for tool in tools {
        ctx.line(tool["name"].as_str().unwrap_or_default())?;
    }
    Ok(())
}

/// Whether a response has a result rather than an error.
fn is_result(answer: &[u8]) -> bool {
    serde_json::from_slice::<Value>(answer).is_ok_and(|answer| answer.get("result").is_some())
}

/// Header of a table of tools.
pub(super) const HEADER: [&str; 2] = ["TOOL", "WHAT IT SAYS IT DOES"];

/// Row of a tool in a table.
pub(super) fn row(tool: &Value) -> [String; 2] {
    let text = |key: &str| tool[key].as_str().unwrap_or("");
    let first = text("description").lines().next().unwrap_or("").to_owned();
    [text("name").to_owned(), first]
}

/// Starts a proxy for one message. Returns the response, and the states of all servers after it.
async fn in_new_proxy(
    loaded: &Loaded,
    client: Option<&str>,
    text: bytes::Bytes,
    ctx: &Context,
) -> anyhow::Result<(bytes::Bytes, Vec<Value>)> {
    let principal = match client {
        None | Some("local") => Principal::local(),
        Some("anonymous") => Principal::anonymous(),
        Some(name) => {
            let name: ClientName = name.parse()?;
            Keyring::load(&loaded.config.clients, &loaded.config.state_dir)?
                .client(&name)
                .with_context(|| format!("there is no client `{name}`"))?
        }
    };
    let assembly = GatewayBuilder::of(loaded).await.map_err(reported)?;
    let _claim = admin::Server::bind(&loaded.config.state_dir)?;
    let (proxy, _watcher) = assembly.start(loaded, Purpose::Serve).await.map_err(reported)?;
    let answer = one_shot::send(&proxy, principal, text).await;
    let states = proxy.servers.states().await;
    for server in proxy.router.servers(&View::All) {
        let is_failed = states
            .iter()
            .any(|state| state["name"] == server.name.as_str() && state["state"] == "failed");
        if is_failed {
            show_log_end(ctx, &server);
        }
    }
    proxy.close("the question is answered").await;
    Ok((answer?.context("the call was cancelled")?, states))
}
