use bytes::Bytes;

use super::*;
use portcullis_protocol::exchange::Payload;

fn tool(server: &str, name: &str) -> Definition {
    let definition = Payload::new(Bytes::from_static(b"{}"));
    Definition::new(server.parse().unwrap(), name.into(), definition)
}

fn client(name: &str) -> Principal {
    Principal {
        kind: PrincipalKind::Client(name.parse().unwrap()),
        groups: Vec::new(),
        verified: true,
        key: None,
    }
}

fn call(metrics: &Metrics, tool: Option<&Definition>) {
    let server = "notes".parse().unwrap();
    metrics.tool_call(ToolCall {
        server: Some(&server),
        tool,
        principal: &client("ci"),
        outcome: Outcome::Ok,
        total: Duration::from_millis(12),
        in_tool: Some(Duration::from_millis(10)),
    });
}

fn lines(metrics: &Metrics, name: &str) -> Vec<String> {
    let text = metrics.render().unwrap();
    assert!(text.ends_with("# EOF\n"));
    text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
}

#[test]
fn call_times_in_tool_and_gateway_are_separate() {
    let metrics = Metrics::new();
    call(&metrics, Some(&tool("notes", "add")));
    assert_eq!(
        lines(&metrics, "mcp_tool_calls_total"),
        [r#"mcp_tool_calls_total{server="notes",tool="add",client="ci",outcome="ok"} 1"#]
    );
    assert_eq!(
        lines(&metrics, "mcp_tool_call_duration_seconds_sum"),
        [r#"mcp_tool_call_duration_seconds_sum{server="notes"} 0.01"#]
    );
    assert_eq!(
        lines(&metrics, "portcullis_overhead_seconds_sum"),
        ["portcullis_overhead_seconds_sum 0.002"]
    );
}

#[test]
fn message_is_active_until_its_outcome() {
    let metrics = Arc::new(Metrics::new());
    let first = metrics.request(&Method::new("tools/call"), Transport::Http);
    let second = metrics.request(&Method::new("no/such\nthing"), Transport::Stdio);
    assert_eq!(lines(&metrics, "mcp_requests_active"), ["mcp_requests_active 2"]);
    first.finish(Outcome::Ok);
    drop(second);
    assert_eq!(lines(&metrics, "mcp_requests_active"), ["mcp_requests_active 0"]);
    let mut totals = lines(&metrics, "mcp_requests_total");
    totals.sort_unstable();
    assert_eq!(
        totals,
        [
            r#"mcp_requests_total{method="other",transport="stdio",outcome="cancelled"} 1"#,
            r#"mcp_requests_total{method="tools/call",transport="http",outcome="ok"} 1"#,
        ]
    );
    assert_eq!(lines(&metrics, "mcp_request_duration_seconds_count").len(), 2);
}

#[test]
fn hostile_names_do_not_grow_the_store() {
    let metrics = Metrics::new();
    for i in 0..(MAX_TOOLS + 50) {
        call(&metrics, Some(&tool("notes", &format!("t{i}"))));
    }
    call(&metrics, None);
    for name in ["bad\rname".to_owned(), "x".repeat(MAX_TOOL_BYTES + 1)] {
        call(&metrics, Some(&tool("notes", &name)));
    }
    let totals = lines(&metrics, "mcp_tool_calls_total");
    assert_eq!(totals.len(), MAX_TOOLS + 1);
    assert!(
        totals.contains(
            &r#"mcp_tool_calls_total{server="notes",tool="other",client="ci",outcome="ok"} 53"#
                .to_owned()
        )
    );
    for code in [-32700, 7, 8, i64::MIN] {
        metrics.error(code);
    }
    assert_eq!(lines(&metrics, "mcp_errors_total").len(), 2);
}

#[test]
fn restarted_server_adds_to_its_processor_time() {
    let metrics = Metrics::new();
    let name: ServerName = "notes".parse().unwrap();
    metrics.server_started();
    let took = |instances: &[(u64, u64)]| {
        let read = |&(number, seconds)| (number, 1 << 20, Duration::from_secs(seconds));
        metrics.server_usage(&name, &instances.iter().map(read).collect::<Vec<_>>());
    };
    took(&[(1, 2)]);
    took(&[(1, 3), (2, 5)]);
    assert_eq!(
        lines(&metrics, "portcullis_server_memory_bytes"),
        [r#"portcullis_server_memory_bytes{server="notes"} 2097152"#]
    );
    metrics.server_ended(&name);
    assert_eq!(lines(&metrics, "portcullis_server_memory_bytes"), Vec::<String>::new());
    metrics.server_started();
    took(&[(2, 6), (3, 1)]);
    assert_eq!(
        lines(&metrics, "portcullis_server_cpu_seconds_total"),
        [r#"portcullis_server_cpu_seconds_total{server="notes"} 10.0"#]
    );
    assert_eq!(lines(&metrics, "portcullis_servers_running"), ["portcullis_servers_running 1"]);
}

#[test]
fn every_metric_has_its_published_name() {
    let metrics = Arc::new(Metrics::new());
    metrics.request(&Method::new("ping"), Transport::Cli).finish(Outcome::Ok);
    call(&metrics, None);
    metrics.error(-32603);
    for code in Code::ALL {
        metrics.refusal(*code);
    }
    metrics.sessions(3);
    metrics.server_usage(&"notes".parse().unwrap(), &[(1, 5, Duration::from_secs(1))]);
    metrics.audit_records(2);
    metrics.policy_reload(true);
    metrics.policy_reload(false);
    metrics.config_reload(true);
    metrics.config_reload(false);
    for name in [
        "mcp_requests_total{",
        "mcp_requests_active ",
        "mcp_request_duration_seconds_bucket{",
        "mcp_tool_calls_total{",
        "mcp_tool_call_duration_seconds_bucket{",
        "portcullis_overhead_seconds_bucket{",
        "mcp_errors_total{code=\"-32603\"} 1",
        "portcullis_refusals_total{code=\"policy-denied\"} 1",
        "portcullis_sessions_active 3",
        "portcullis_servers_running ",
        "portcullis_server_memory_bytes{server=\"notes\"} 5",
        "portcullis_server_cpu_seconds_total{",
        "portcullis_audit_records_total 2",
        "portcullis_policy_reloads_total{outcome=\"applied\"} 1",
        "portcullis_policy_reloads_total{outcome=\"rejected\"} 1",
        "portcullis_config_reloads_total{outcome=\"applied\"} 1",
        "portcullis_config_reloads_total{outcome=\"rejected\"} 1",
    ] {
        assert!(!lines(&metrics, name).is_empty(), "{name}");
    }
}

#[test]
fn plugin_counters_are_limited_and_never_decrease() {
    let metrics = Metrics::new();
    for at in 0..100 {
        metrics.plugin_counted("p", &format!("n{at}"), 1);
    }
    metrics.plugin_counted("p", "n0", u64::MAX);
    metrics.plugin_counted("p", "n0", 5);
    let counted = lines(&metrics, "portcullis_plugin_events_total");
    assert_eq!(counted.len(), MAX_PLUGIN_NAMES);
    let most = format!(r#"{{plugin="p",name="n0"}} {}"#, u64::MAX);
    assert!(counted.iter().any(|line| line.ends_with(&most)), "{counted:?}");
}
