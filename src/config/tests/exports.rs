use portcullis_audit::config::Destination;

use super::{findings, parse};

#[test]
fn unusable_exports_are_found() {
    let text = r#"
[[audit.export]]
name = "a"
to = "https://me:HIDDEN@siem.example/in"
[[audit.export]]
name = "a"
to = "syslog+tcp://loghost"
format = "parquet"
headers = { Authorization = { from = "env:TOKEN" } }
ca-file = "ca.pem"
[[audit.export]]
name = "b"
to = "ftp://me:HIDDEN@host"
[[audit.export]]
name = "c"
to = { from = "HIDDEN" }
[[audit.export]]
name = "d"
to = "stdout"
[[audit.export]]
name = "e"
to = "stdout"
[[audit.export]]
name = "f"
filter = "decision = maybe"
to = "postgres://audit@db.example/audit"
format = "jsonl"
headers = { "a b" = { from = "HIDDEN" } }
"#;
    insta::assert_snapshot!(findings(text), @r#"
    4:1 [config-literal-secret] this URL contains credentials
        = put the whole URL into a secret: `to = { from = "env:NAME" }`
    6:1 [config-conflict] two exports are called `a` (line 3)
        = give each a distinct name, which its cursor in the store has
    7:1 warning [config-unsafe] records cross the network without encryption
        = use `https`, `syslog+tls` or PostgreSQL's `sslmode=require`, if the target can
    8:1 [config-conflict] `parquet` cannot be streamed to syslog
        = known here: `syslog`, `cef`, `ocsf`
    9:1 [config-conflict] `headers` has no meaning for syslog
        = remove it
    10:1 [config-conflict] `ca-file` has no meaning for syslog
        = remove it: the connection does not use TLS
    13:6 [config-bad-value] this is not a target: write `file:PATH`, `stdout`, `https://…`, `otlp+https://…`, `syslog+tls://HOST:PORT`, `syslog+tcp://HOST:PORT`, `syslog+udp://HOST:PORT`, `unix:PATH` or `postgres://…`
    16:15 [config-bad-value] a secret comes `from` a reference: write `env:NAME`, `file:PATH` or another kind that docs/concepts/secrets.md lists, never the value
    22:1 [config-conflict] two exports write to standard output (line 17)
        = keep one, or send the other to a file
    25:10 [config-bad-value] this is not a filter: `maybe` is not a value of `decision`
        = docs/reference/audit-queries.md describes filters; `portcullis audit query` accepts the same
    27:1 [config-conflict] `jsonl` cannot be streamed to PostgreSQL
        = remove it: PostgreSQL has columns
    28:1 [config-conflict] `headers` has no meaning for PostgreSQL
        = remove it
    28:13 [config-bad-value] `a b` is not a header name
    28:30 [config-bad-value] a secret comes `from` a reference: write `env:NAME`, `file:PATH` or another kind that docs/concepts/secrets.md lists, never the value
    "#);
}

#[test]
fn malformed_exports_are_found() {
    let text = r#"
[[audit.export]]
name = "d"
to = "stdout"
batch = 0
format = "xml"
[[audit.export]]
name = "No Name"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    5:9 [config-bad-value] this must be at least 1
        = Maximum number of records in one delivery.
    6:10 [config-bad-value] `xml` is not a value of this key
        = one of `jsonl`, `csv`, `parquet`, `ocsf`, `cef`, `syslog`, `otlp`
    7:1 [config-missing-key] the key `to` is missing
        ^ in this table
        = `to`: Target: `file:PATH`, `stdout`, `https://…`, `otlp+https://…`, `syslog+tls://HOST:PORT`, `syslog+tcp://HOST:PORT`, `syslog+udp://HOST:PORT`, `unix:PATH` or `postgres://…`. Write a URL with a password or a token as a reference: `{ from = "env:NAME" }`.
    8:8 [config-bad-value] `No Name` is not a legal name: use 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit
        = Name in logs and metrics, and name of the stream's cursor in the store.
    "#);
}

#[test]
fn paths_of_exports_are_resolved_against_the_config() {
    let text = r#"
[[audit.export]]
name = "siem"
to = "syslog+tls://siem.example"
format = "cef"
ca-file = "ca.pem"
[[audit.export]]
name = "warehouse"
to = { from = "file:db-url" }
begin = "now"
"#;
    let loaded = parse(std::path::Path::new("/etc/p/portcullis.toml"), text).unwrap();
    let [siem, warehouse] = loaded.config.audit.export.as_slice() else { panic!("two exports") };
    assert_eq!(siem.ca_file.as_deref(), Some(std::path::Path::new("/etc/p/ca.pem")));
    assert_eq!(siem.batch, 500);
    let Destination::Secret(secret) = &warehouse.to else { panic!("a reference") };
    assert_eq!(secret.from, "file:/etc/p/db-url");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}
