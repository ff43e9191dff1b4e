//! The official SDKs as clients: the programs of `tests/clients`.

use std::process::Stdio;

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::{in_time, root, target};

/// Which SDK.
#[derive(Debug, Clone, Copy)]
pub enum Sdk {
    Python,
    TypeScript,
}

impl Sdk {
    pub const ALL: [Self; 2] = [Self::Python, Self::TypeScript];

    fn command(self) -> Command {
        let clients = root().join("tests/clients");
        match self {
            Self::Python => {
                let mut command = Command::new(target("tests/python/bin/python"));
                command.arg(clients.join("python/client.py"));
                command
            }
            Self::TypeScript => {
                let client = clients.join("typescript");
                assert!(client.join("node_modules").exists(), "`tests/run` installs the SDK");
                let mut command = Command::new("node");
                command.arg(client.join("client.mjs"));
                command
            }
        }
    }

    /// Takes these steps in this era (`legacy` or `modern`) against this target (`--url URL` or
    /// `--stdio COMMAND ARG…`) and returns its report.
    pub async fn report(
        self,
        era: &str,
        target: &[&str],
        key: Option<&str>,
        steps: &Value,
    ) -> Value {
        let mut command = self.command();
        command.arg(era).args(target).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_remove("http_proxy").env_remove("PORTCULLIS_KEY");
        if let Some(key) = key {
            command.env("PORTCULLIS_KEY", key);
        }
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(steps.to_string().as_bytes()).await.unwrap();
        drop(stdin);
        let output = in_time("an SDK's report", child.wait_with_output()).await.unwrap();
        assert!(output.status.success(), "{self:?} {era}: {output:#?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}
