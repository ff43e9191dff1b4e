use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::{
    InterceptorEntry, InterceptorKind,
    fixtures::{answered, call, tool},
};
use portcullis_chain::Decision;

fn schema() -> Schema {
    Schema::new("schema", &Config::default()).unwrap()
}

fn with_input(input: Value) -> Arc<Definition> {
    tool("s", "t", json!({ "name": "t", "inputSchema": input }))
}

async fn request(
    schema: &Schema,
    tool: &Arc<Definition>,
    arguments: Value,
) -> Result<Verdict, Fault> {
    schema.inspect(&call("a", tool, arguments), Phase::Request).await
}

fn refusal(verdict: Verdict) -> Refusal {
    match verdict.decision {
        Decision::Refuse(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

async fn refused(tool: &Arc<Definition>, arguments: Value) -> Refusal {
    refusal(request(&schema(), tool, arguments).await.unwrap())
}

async fn passes(tool: &Arc<Definition>, arguments: Value) -> bool {
    request(&schema(), tool, arguments).await.unwrap() == Verdict::pass()
}

fn notes() -> Arc<Definition> {
    with_input(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["title"],
        "additionalProperties": false,
        "properties": {
            "title": { "type": "string", "minLength": 1, "maxLength": 9, "pattern": "^[A-Z]" },
            "level": { "enum": ["low", "high"] },
            "count": { "type": "integer", "minimum": 1 },
            "tags": { "type": "array", "items": { "type": "string" }, "uniqueItems": true },
        },
    }))
}

#[tokio::test]
async fn fitting_arguments_pass() {
    let tool = notes();
    assert!(passes(&tool, json!({ "title": "A" })).await);
    assert!(passes(&tool, json!({ "title": "A", "tags": ["x", "y"], "level": "low" })).await);
}

/// Zod 4 writes such a pattern for `z.email()`.
#[tokio::test]
async fn patterns_with_look_around_are_matched_within_a_bound() {
    let email = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$";
    let tool = with_input(json!({ "properties": { "to": { "pattern": email }, "text": {} } }));
    let longest = format!("{}@{}.example", "a.b-c_d".repeat(9), "sub-domain.".repeat(17) + "host");
    for to in ["ada@example.org", "a@b.io", &longest] {
        assert!(passes(&tool, json!({ "to": to, "text": "x".repeat(100_000) })).await, "{to}");
    }
    for to in [".ada@example.org", "a..b@example.org", "ada@example", "@"] {
        let refusal = refused(&tool, json!({ "to": to })).await;
        assert_eq!(refusal.code, Code::ArgumentsInvalid, "{to}");
    }
    let endless = with_input(json!({ "properties": { "to": { "pattern": r"^(?=x)(x+x+)+\1y" } } }));
    let refusal = refused(&endless, json!({ "to": "x".repeat(5_000) })).await;
    assert_eq!(refusal.code, Code::ArgumentsInvalid);
    // Its bound alone is too large for this size.
    let refusal = refused(&endless, json!({ "to": "x".repeat(5_000_000) })).await;
    assert_eq!(refusal.code, Code::ArgumentsInvalid);
}

#[tokio::test]
async fn refusal_has_position_and_expectation_but_no_value() {
    const HIDDEN: &str = "hunter2hunter2";
    let tool = notes();
    for (arguments, words) in [
        (json!({}), "the top level lacks `title`"),
        (json!({ "title": 5 }), "`/title` is not of type string"),
        (json!({ "title": HIDDEN }), "`/title` does not match the pattern `^[A-Z]`"),
        (json!({ "title": format!("A{HIDDEN}") }), "`/title` is longer than 9 characters"),
        (json!({ "title": "A", "level": HIDDEN }), r#"`/level` is not one of ["low","high"]"#),
        (json!({ "title": "A", "count": 0.5 }), "`/count` is not of type integer"),
        (
            json!({ "title": "A", "tags": ["x", { HIDDEN: HIDDEN }] }),
            "`/tags/1` is not of type string",
        ),
        (json!({ "title": "A", "tags": [HIDDEN, HIDDEN] }), "`/tags` has a duplicate item"),
        (
            json!({ "title": "A", HIDDEN: 1 }),
            "the top level has 1 property that the schema does not name",
        ),
    ] {
        let refusal = refused(&tool, arguments).await;
        assert_eq!(refusal.code, Code::ArgumentsInvalid);
        assert!(refusal.message.contains(words), "{}", refusal.message);
        assert!(!format!("{refusal:?}").contains(HIDDEN), "{refusal:?}");
    }
}

#[tokio::test]
async fn names_unknown_to_the_schema_are_not_shown() {
    let tool = with_input(json!({ "additionalProperties": { "type": "string" } }));
    let refusal = refused(&tool, json!({ "hunter2": 1, "b": 2, "c": 3, "d": 4, "e": 5 })).await;
    assert_eq!(
        refusal.message,
        "the arguments do not fit the tool's schema: `/*` is not of type string; `/*` is not of type string; \
         `/*` is not of type string; and 2 more"
    );
}

#[tokio::test]
async fn absent_arguments_count_as_an_empty_object() {
    let schema = schema();
    for (tool, fits) in [(with_input(json!({ "type": "object" })), true), (notes(), false)] {
        for params in [json!({ "name": "t" }), json!({})] {
            let exchange =
                Exchange { request: Payload::from(params), ..call("a", &tool, json!({})) };
            let verdict = schema.inspect(&exchange, Phase::Request).await.unwrap();
            assert_eq!(verdict == Verdict::pass(), fits);
        }
    }
    // Arguments must be an object even if the schema accepts anything.
    for arguments in [json!([]), json!("x"), json!(null)] {
        let refusal = refused(&with_input(json!({})), arguments).await;
        assert_eq!(refusal.code, Code::ArgumentsInvalid);
    }
}

#[tokio::test]
async fn drafts_are_honored() {
    // `items` as a tuple is draft 7; 2020-12 has `prefixItems`.
    for (draft, keyword) in [
        ("http://json-schema.org/draft-07/schema#", "items"),
        ("https://json-schema.org/draft/2019-09/schema", "items"),
        ("https://json-schema.org/draft/2020-12/schema", "prefixItems"),
    ] {
        let tool = with_input(json!({
            "$schema": draft,
            "properties": { "a": { keyword: [{ "type": "string" }, { "type": "integer" }] } },
        }));
        assert!(passes(&tool, json!({ "a": ["x", 1] })).await, "{draft}");
        assert!(!passes(&tool, json!({ "a": ["x", "y"] })).await, "{draft}");
    }
}

#[tokio::test]
async fn unusable_schema_refuses_or_passes_as_configured() {
    for (definition, reason) in [
        (json!({}), "is missing"),
        (json!({ "inputSchema": { "type": "thing" } }), "is not legal"),
        (json!({ "inputSchema": 5 }), "is not legal"),
        (json!({ "inputSchema": { "$schema": "https://example.com/mine" } }), "is not legal"),
        (json!({ "inputSchema": { "pattern": "(((a{100}){100}){100}){100}" } }), "is not legal"),
        (json!({ "inputSchema": { "pattern": "(" } }), "is not legal"),
        (
            json!({ "inputSchema": { "properties": { "a": { "$ref": "https://example.com/a" } } } }),
            "refers to `https://example.com/a`",
        ),
        (json!({ "inputSchema": { "$ref": "file:///etc/passwd" } }), "refers to"),
        (json!({ "inputSchema": { "$ref": "#" } }), "without an end"),
        (json!({ "inputSchema": { "description": "x".repeat(300 << 10) } }), "is longer than"),
    ] {
        let tool = tool("s", "t", definition);
        let refusal = refused(&tool, json!({})).await;
        assert_eq!(refusal.code, Code::ServerMisbehaved);
        assert_eq!(refusal.message, "the server's inputSchema for this tool is unusable");
        let detail = refusal.detail.unwrap();
        assert!(detail.contains(reason), "{detail}");

        let config = Config { unusable: Unusable::Pass, ..Config::default() };
        let lenient = Schema::new("schema", &config).unwrap();
        let verdict = request(&lenient, &tool, json!({})).await.unwrap();
        assert_eq!(verdict.decision, Decision::Pass);
        assert_eq!(verdict.findings[0].message, detail);
    }
}

#[tokio::test]
async fn results_are_checked_if_there_is_a_schema() {
    let schema = schema();
    let tool = tool(
        "s",
        "t",
        json!({
            "inputSchema": {},
            "outputSchema": { "type": "object", "required": ["sum"], "properties": { "sum": { "type": "number" } } },
        }),
    );
    let plain = with_input(json!({}));
    for (tool, result, fits) in [
        (&tool, json!({ "structuredContent": { "sum": 1 } }), true),
        (&tool, json!({ "structuredContent": { "sum": "1" } }), false),
        (&tool, json!({ "structuredContent": null }), false),
        (&tool, json!({ "content": [] }), false),
        (&tool, json!({ "content": [], "isError": false }), false),
        (&tool, json!({ "content": [], "isError": "true" }), false),
        (&tool, json!({ "content": [], "isError": true }), true),
        (&tool, json!({ "resultType": "complete" }), false),
        (&tool, json!({ "resultType": "input_required", "inputRequests": {} }), true),
        (&plain, json!({ "structuredContent": { "any": "thing" } }), true),
        (&plain, json!({ "content": [] }), true),
    ] {
        let exchange = answered(call("a", tool, json!({})), result.clone());
        let verdict = schema.inspect(&exchange, Phase::Response).await.unwrap();
        if fits {
            assert_eq!(verdict, Verdict::pass(), "{result}");
        } else {
            assert_eq!(refusal(verdict).code, Code::ResultInvalid, "{result}");
        }
    }
    let failed = Exchange {
        response: Some(Answer::Error(Payload::from(json!({ "code": 1, "message": "x" })))),
        ..call("a", &tool, json!({}))
    };
    assert_eq!(schema.inspect(&failed, Phase::Response).await.unwrap(), Verdict::pass());
}

#[tokio::test]
async fn unusable_output_schema_refuses_only_the_result() {
    let schema = schema();
    let tool = tool("s", "t", json!({ "inputSchema": {}, "outputSchema": { "$ref": "x" } }));
    let exchange = call("a", &tool, json!({}));
    assert_eq!(schema.inspect(&exchange, Phase::Request).await.unwrap(), Verdict::pass());
    let exchange = answered(exchange, json!({ "structuredContent": {} }));
    let verdict = schema.inspect(&exchange, Phase::Response).await.unwrap();
    assert_eq!(refusal(verdict).code, Code::ServerMisbehaved);
}

#[tokio::test]
async fn unknown_tool_is_left_to_the_router() {
    let exchange = Exchange {
        target: Target::Tool { name: "zzz".into(), tool: None },
        ..call("a", &notes(), json!({}))
    };
    assert_eq!(schema().inspect(&exchange, Phase::Request).await.unwrap(), Verdict::pass());
}

#[tokio::test]
async fn definition_is_compiled_once() {
    let schema = schema();
    let definition = json!({ "inputSchema": { "type": "object" } });
    let (first, same) = (tool("s", "t", definition.clone()), tool("s", "t", definition));
    for tool in [&first, &first, &same, &first] {
        request(&schema, tool, json!({})).await.unwrap();
    }
    assert_eq!(schema.cache.lock().len(), 1);
    let one = schema.checks(&first).await.unwrap();
    assert!(Arc::ptr_eq(&one, &schema.checks(&same).await.unwrap()));
    // Another definition at the same address is another definition.
    drop((first, same));
    for i in 0..50 {
        let tool = with_input(json!({ "required": [format!("r{i}")] }));
        let refusal = refusal(request(&schema, &tool, json!({})).await.unwrap());
        assert!(refusal.message.contains(&format!("lacks `r{i}`")), "{}", refusal.message);
    }
}

#[tokio::test]
async fn abandoned_call_does_not_undo_the_compilation() {
    let schema = schema();
    let tool = notes();
    // Polled once and dropped: the compilation has begun, and nearly always not finished.
    drop(futures_util::FutureExt::now_or_never(schema.checks(&tool)));
    // After the thread has ended, both permits are free, and its result is stored.
    let all = u32::try_from(MAX_CONCURRENT).unwrap();
    drop(schema.compiling.acquire_many(all).await.unwrap());
    assert!(schema.cache.lock().recognise(&tool).is_some());
}

#[tokio::test]
async fn cache_is_limited() {
    let schema = schema();
    for i in 0..300 {
        let patterns: Vec<_> =
            (0..100).map(|p| json!({ "pattern": format!("^{i}-{p}$") })).collect();
        request(&schema, &with_input(json!({ "anyOf": patterns })), json!({})).await.unwrap();
    }
    let cached = schema.cache.lock().len();
    assert!((1..20).contains(&cached), "{cached}");
}

#[tokio::test]
async fn hostile_pattern_runs_in_linear_time() {
    let tool = with_input(json!({ "properties": { "a": { "pattern": "^(a+)+$" } } }));
    assert!(passes(&tool, json!({ "a": "a".repeat(50_000) })).await);
    assert!(!passes(&tool, json!({ "a": format!("{}!", "a".repeat(50_000)) })).await);
    let tool = with_input(json!({ "properties": { "a": { "pattern": "^(a|a)*(a|aa)*b$" } } }));
    assert!(!passes(&tool, json!({ "a": "a".repeat(500_000) })).await);
}

#[tokio::test]
async fn excessive_work_is_refused_before_it_begins() {
    let twice = |next: Value| json!({ "anyOf": [next, next] });
    let mut defs = Map::new();
    for level in 0..60 {
        let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
        defs.insert(format!("d{level}"), twice(next));
    }
    defs.insert("d60".into(), json!({ "type": "string" }));
    let wide = with_input(json!({ "$ref": "#/$defs/d0", "$defs": defs }));
    let refusal = refused(&wide, json!({})).await;
    assert_eq!(refusal.code, Code::ArgumentsInvalid);
    assert!(refusal.message.contains("too large or too deep"), "{}", refusal.message);

    let deep = with_input(json!({ "properties": { "a": twice(json!({ "$ref": "#" })) } }));
    let nested = |levels| (0..levels).fold(json!({}), |inner, _| json!({ "a": inner }));
    assert!(passes(&deep, nested(8)).await);
    assert!(refused(&deep, nested(50)).await.message.contains("too large or too deep"));
}

#[tokio::test]
async fn nesting_at_the_limit_fits_a_threads_stack() {
    // 7 evaluations a level through every kind of applicator, 36 levels: just below the limit.
    let schema = json!({
        "$defs": { "n": { "allOf": [{ "anyOf": [{ "oneOf": [{ "if": { "properties": {
            "a": { "items": { "$ref": "#/$defs/n" } } } }, "else": false }] }] }] } },
        "$ref": "#/$defs/n",
    });
    let tool = with_input(schema);
    let nested = |levels| (0..levels).fold(json!({}), |inner, _| json!({ "a": [inner] }));
    for levels in 1..=31 {
        let verdict = request(&self::schema(), &tool, nested(levels)).await.unwrap();
        if let Decision::Refuse(refusal) = verdict.decision {
            assert!(refusal.message.contains("too large or too deep"), "{refusal}");
        }
    }
}

#[tokio::test]
async fn long_chain_of_references_compiles() {
    let mut defs = Map::new();
    for level in 0..2_000 {
        let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
        defs.insert(format!("d{level}"), json!({ "properties": { "a": next } }));
    }
    defs.insert("d2000".into(), json!({ "type": "string" }));
    let tool = with_input(json!({ "$ref": "#/$defs/d0", "$defs": defs }));
    assert!(passes(&tool, json!({ "a": { "a": {} } })).await);
}

#[tokio::test]
async fn large_payloads_are_checked_too() {
    let tool = notes();
    let many: Vec<_> = (0..20_000).map(|i| format!("tag-{i}")).collect();
    assert!(passes(&tool, json!({ "title": "A", "tags": many })).await);
    let mut many: Vec<_> = many.into_iter().map(Value::from).collect();
    many.push(json!(1));
    let refusal = refused(&tool, json!({ "title": "A", "tags": many })).await;
    assert_eq!(refusal.code, Code::ArgumentsInvalid);
}

#[tokio::test]
async fn unparsable_payload_is_a_fault() {
    let raw = format!(r#"{{"arguments":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    let exchange = Exchange {
        request: Payload::new(Bytes::from(raw)),
        ..call("a", &with_input(json!({})), json!({}))
    };
    assert!(schema().inspect(&exchange, Phase::Request).await.is_err());
}

#[test]
fn settings_are_parsed_from_an_entry() {
    let entry: InterceptorEntry =
        toml::from_str("use = 'schema'\nresults = false\nunusable = 'pass'").unwrap();
    let InterceptorKind::Schema(config) = entry.kind else { panic!() };
    assert_eq!(config, Config { arguments: true, results: false, unusable: Unusable::Pass });
    let schema = Schema::new("schema", &config).unwrap();
    let call = Method::new(Method::TOOLS_CALL);
    assert!(schema.wants(&call, Phase::Request));
    assert!(!schema.wants(&call, Phase::Response));
    assert!(toml::from_str::<InterceptorEntry>("use = 'schema'\nresult = false").is_err());
    let nothing = Config { arguments: false, results: false, ..Config::default() };
    assert!(Schema::new("schema", &nothing).is_err());
}
