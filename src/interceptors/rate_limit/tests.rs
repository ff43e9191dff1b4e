use std::sync::Arc;

use governor::clock::FakeRelativeClock;
use serde_json::json;

use super::*;
use crate::{
    InterceptorEntry, InterceptorKind,
    fixtures::{call, message, tool},
};
use portcullis_chain::Decision;

fn config(toml: &str) -> Config {
    toml::from_str(toml).unwrap()
}

fn limiter(toml: &str) -> (RateLimit<FakeRelativeClock>, FakeRelativeClock) {
    let clock = FakeRelativeClock::default();
    (RateLimit::with_clock("rate-limit", &config(toml), clock.clone()).unwrap(), clock)
}

fn passes<C: Clock + Clone>(limiter: &RateLimit<C>, exchange: &Exchange) -> bool {
    limiter.admit(exchange).is_ok()
}

/// Number of calls of one tool that pass until one is refused.
fn passing<C: Clock + Clone>(limiter: &RateLimit<C>, exchange: &Exchange) -> usize {
    (0..1_000).take_while(|_| passes(limiter, exchange)).count()
}

fn of(client: &str, server: &str, name: &str) -> Exchange {
    call(client, &tool(server, name, json!({})), json!({}))
}

#[test]
fn keys_of_a_limit_have_separate_counts() {
    let calls = [of("a", "s", "t"), of("b", "s", "t"), of("a", "z", "t"), of("a", "s", "u")];
    // For each `per`: the other calls that have a count separate from the first one's.
    for (per, apart) in [
        ("[]", [false, false, false]),
        (r#"["client"]"#, [true, false, false]),
        (r#"["server"]"#, [false, true, false]),
        (r#"["tool"]"#, [false, true, true]),
        (r#"["client", "tool"]"#, [true, true, true]),
        (r#"["client", "server"]"#, [true, true, false]),
        (r#"["client", "server", "tool"]"#, [true, true, true]),
    ] {
        for (i, apart) in apart.into_iter().enumerate() {
            let (limiter, _) =
                limiter(&format!("limits = [{{ per = {per}, calls = 1, window = '1m' }}]"));
            assert!(passes(&limiter, &calls[0]));
            assert!(!passes(&limiter, &calls[0]));
            assert_eq!(passes(&limiter, &calls[i + 1]), apart, "{per} {i}");
        }
    }
}

#[test]
fn default_limit_is_6000_calls_per_client_and_minute() {
    let (limiter, clock) = limiter("");
    let call = of("a", "s", "t");
    let passing = || (0..10_000).take_while(|_| passes(&limiter, &call)).count();
    assert_eq!(passing(), 6_000);
    assert!(passes(&limiter, &of("b", "s", "t")));
    clock.advance(Duration::from_secs(1));
    assert_eq!(passing(), 100);
    // Lists do not count.
    assert!(passes(&limiter, &message("a", "tools/list")));
    assert!(!passes(&limiter, &message("a", "resources/read")));
}

#[test]
fn calls_refill_evenly_over_the_window() {
    let (limiter, clock) = limiter("limits = [{ calls = 4, window = '1m' }]");
    let call = of("a", "s", "t");
    assert_eq!(passing(&limiter, &call), 4);
    clock.advance(Duration::from_secs(14));
    assert_eq!(passing(&limiter, &call), 0);
    clock.advance(Duration::from_secs(1));
    assert_eq!(passing(&limiter, &call), 1);
    clock.advance(Duration::from_secs(3_600));
    assert_eq!(passing(&limiter, &call), 4);
}

#[test]
fn burst_is_independent_of_the_rate() {
    let (limiter, clock) = limiter("limits = [{ calls = 60, window = '1m', burst = 3 }]");
    let call = of("a", "s", "t");
    assert_eq!(passing(&limiter, &call), 3);
    clock.advance(Duration::from_secs(2));
    assert_eq!(passing(&limiter, &call), 2);
}

#[tokio::test]
async fn refusal_names_the_limit_and_the_retry_time() {
    let (limiter, clock) = limiter(
        "limits = [
            { name = 'fast', calls = 10, window = '1s', burst = 1 },
            { per = ['client', 'tool'], calls = 6, window = '1m', burst = 1 },
        ]",
    );
    let call = of("a", "s", "t");
    assert!(passes(&limiter, &call));
    clock.advance(Duration::from_millis(50));
    let verdict = limiter.inspect(&call, Phase::Request).await.unwrap();
    let Decision::Refuse(refusal) = verdict.decision else { panic!("{verdict:?}") };
    assert_eq!(refusal.code, Code::RateLimited);
    // Both are exceeded; the one that recovers last is named.
    assert_eq!(refusal.rules, [Rule::named("6-per-1m-by-client-tool")]);
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(9_950)));
    assert_eq!(refusal.message, "the rate limit of 6 calls per 1m is reached; retry in 10 s");
    clock.advance(refusal.retry_after.unwrap());
    assert!(passes(&limiter, &call));
}

#[test]
fn refused_call_is_not_charged_by_other_limits() {
    for limits in [
        "{ calls = 5, window = '1h' }, { per = ['tool'], calls = 1, window = '1h' }",
        "{ per = ['tool'], calls = 1, window = '1h' }, { calls = 5, window = '1h' }",
    ] {
        let (limiter, _) = limiter(&format!("limits = [{limits}]"));
        assert!(passes(&limiter, &of("a", "s", "t")));
        for _ in 0..100 {
            assert!(!passes(&limiter, &of("a", "s", "t")));
        }
        for name in ["u", "v", "w", "x"] {
            assert!(passes(&limiter, &of("a", "s", name)), "{name}");
        }
        assert!(!passes(&limiter, &of("a", "s", "y")));
    }
}

#[test]
fn only_configured_events_count() {
    let (limiter, _) = limiter(
        "limits = [
            { calls = 1, window = '1h' },
            { calls = 2, window = '1h', events = ['resources/read', 'prompts/get'] },
        ]",
    );
    let wants = |method| limiter.wants(&Method::new(method), Phase::Request);
    assert!(wants("tools/call") && wants("resources/read") && !wants("ping"));
    assert!(!limiter.wants(&Method::new("tools/call"), Phase::Response));
    assert_eq!(passing(&limiter, &of("a", "s", "t")), 1);
    assert_eq!(passing(&limiter, &message("a", "prompts/get")), 2);
}

#[test]
fn unknown_tools_share_one_count() {
    let (limiter, _) = limiter("limits = [{ per = ['client', 'tool'], calls = 3, window = '1h' }]");
    let unknown = |i: usize| Exchange {
        server: Some("s".parse().unwrap()),
        target: Target::Tool { name: format!("t{i}"), tool: None },
        ..message("a", Method::TOOLS_CALL)
    };
    assert_eq!((0..1_000).filter(|&i| passes(&limiter, &unknown(i))).count(), 3);
    assert_eq!(limiter.limits.lock()[0].store.len(), 1);
}

#[test]
fn flood_of_tools_is_limited_and_does_not_affect_other_clients() {
    let (limiter, clock) =
        limiter("limits = [{ per = ['client', 'tool'], calls = 2, window = '1h' }]");
    let passed =
        (0..5_000).filter(|i| passes(&limiter, &of("flood", "s", &format!("t{i}")))).count();
    assert_eq!(passed, MAX_TOOLS_PER_OWNER + 2);
    assert_eq!(limiter.limits.lock()[0].store.len(), MAX_TOOLS_PER_OWNER + 1);
    assert_eq!(passing(&limiter, &of("good", "s", "t9999")), 2);
    // Expired counts free their slots.
    clock.advance(Duration::from_secs(7_200));
    assert_eq!(passing(&limiter, &of("flood", "s", "t9998")), 2);
    assert!(limiter.limits.lock()[0].store.len() < 10);
}

#[test]
fn expired_counts_are_removed() {
    let (limiter, clock) = limiter("limits = [{ calls = 1, window = '1ms' }]");
    for i in 0..5_000 {
        clock.advance(Duration::from_millis(1));
        assert!(passes(&limiter, &of(&format!("c{i}"), "s", "t")));
    }
    assert!(limiter.limits.lock()[0].store.len() < 1_000);
}

#[test]
fn concurrent_calls_do_not_exceed_the_limit() {
    let limiter = Arc::new(
        RateLimit::new(
            "rate-limit",
            &config(
                "limits = [{ calls = 50, window = '31d' }, { per = ['tool'], calls = 70, window = '31d' }]",
            ),
        )
        .unwrap(),
    );
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let limiter = Arc::clone(&limiter);
            std::thread::spawn(move || passing(&limiter, &of("a", "s", "t")))
        })
        .collect();
    assert_eq!(threads.into_iter().map(|t| t.join().unwrap()).sum::<usize>(), 50);
}

#[test]
fn windows_round_trip() {
    for (text, millis) in [
        ("500ms", 500),
        ("1s", 1_000),
        ("90s", 90_000),
        ("1m", 60_000),
        ("2h", 7_200_000),
        ("31d", MAX_WINDOW_MS),
    ] {
        let window: Window = text.parse().unwrap();
        assert_eq!(window.0, Duration::from_millis(millis));
        assert_eq!(window.to_string(), text);
    }
    for text in
        ["", "1", "m", "0s", "-1s", "1.5s", "1 m", "32d", "1w", "99999999999999999999s", "1ms "]
    {
        assert!(text.parse::<Window>().is_err(), "{text}");
    }
}

#[test]
fn illegal_settings_name_their_key() {
    for (toml, words) in [
        ("limits = []", "`limits` is empty"),
        (
            "limits = [{ calls = 1, window = '1s' }, { calls = 1, window = '1s', events = [] }]",
            "`limits[1].events` is empty",
        ),
        ("limits = [{ calls = 4000000000, window = '1ms' }]", "finer than one per nanosecond"),
        ("limits = [{ calls = 1, window = '31d', burst = 4000000000 }]", "more than 10 years"),
    ] {
        let error = RateLimit::new("rate-limit", &config(toml)).err().unwrap();
        assert!(error.to_string().contains(words), "{error}");
    }
    for toml in [
        "limits = [{ calls = 0, window = '1s' }]",
        "limits = [{ calls = 1, window = 'soon' }]",
        "limits = [{ calls = 1, window = '1s', by = [] }]",
        "limit = []",
    ] {
        assert!(toml::from_str::<Config>(toml).is_err(), "{toml}");
    }
}

#[test]
fn settings_are_parsed_from_an_entry() {
    let entry: InterceptorEntry = toml::from_str(
        "use = 'rate-limit'\nname = 'calls'\nlimits = [{ calls = 1, window = '1m' }]",
    )
    .unwrap();
    assert!(matches!(entry.kind, InterceptorKind::RateLimit(config) if config.limits.len() == 1));
    assert!(
        toml::from_str::<InterceptorEntry>("use = 'rate-limit'\nlimits = []\nlimt = 1").is_err()
    );
}
