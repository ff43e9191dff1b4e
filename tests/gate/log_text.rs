//! The proxy's own log with hostile names in it.

use serde_json::{Value, json};

use crate::support::{
    agent::{Agent, code_of},
    gate::Setup,
};

const POLICY: &str = r#"
@id("all")
permit (principal, action, resource);
@id("no-such-method")
forbid (principal, action, resource) when { context.method like "x/*" };
"#;

/// Control characters, marks of direction, invisible characters, separators of lines, tags and a
/// variation selector of plane 14.
const HOSTILE: &str = "x/\u{1b}[2J\u{7f}\u{9b}\u{ad}\u{61c}\u{200b}\u{200d}\u{202e}\u{2028}\u{2029}\u{2060}\u{2066}\u{feff}\u{e0041}\u{e0100}é日";

/// Whether a character could steer a terminal or hide text. Written out here, so that a character that
/// the proxy forgets is missed.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff
            | 0xfff9..=0xfffb | 0xe0000..=0xe0fff)
}

#[tokio::test]
async fn hostile_method_name_is_escaped_in_both_log_formats() {
    for format in ["json", "text"] {
        let log = format!("[telemetry]\nlog-format = \"{format}\"\n");
        let mut gate = Setup::crooked("").and(&log).policies(POLICY).start().await;
        let agent = Agent::legacy(&gate.url("/servers/crooked/mcp"), None).await.unwrap();
        let refused = agent.ask(HOSTILE, json!({})).await.unwrap_err();
        assert_eq!(code_of(&refused), "policy-denied");
        let line = gate.logged("the refusal", |line| line.contains("x/\\u")).await;
        assert!(!line.contains(steers), "{format}: {line:?}");
        let shown = match format {
            "json" => ["\\u202e", "\\udb40\\udc41"],
            // As Rust's `Debug` has them.
            _ => ["\\u{202e}", "\\u{e0041}"],
        };
        assert!(shown.iter().all(|shown| line.contains(shown)), "{format}: {line}");
        assert!(line.contains("é日"), "{format}: {line}");
        if format == "json" {
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["method"], HOSTILE);
        }
        for line in gate.log() {
            assert!(!line.contains(steers), "{format}: {line:?}");
        }
        gate.stop().await;
    }
}
