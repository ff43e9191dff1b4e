use serde_json::json;

use super::{schema_names::PATTERN_PARTS, *};

fn misspelled(schema: &Value, arguments: &Value) -> Option<String> {
    match SchemaNames::of(schema).hold(arguments.as_object().unwrap()) {
        Ok(()) => None,
        // Of two names that differ in case alone, either is one.
        Err(NameError::Spelled(name)) => Some(name.to_lowercase()),
        Err(wrong) => panic!("{wrong:?}"),
    }
}

#[test]
fn misspelled_case_is_found() {
    let schema = json!({ "properties": {
        "path": {},
        "Key": {},
        "key": {},
        "in": { "properties": { "deep": {} } },
        "all": { "items": { "properties": { "each": {} } } },
    } });
    for (arguments, found) in [
        (json!({ "path": 1, "Key": 1, "key": 1 }), None),
        (json!({ "other": 1, "p\u{430}th": 1, "": 1 }), None),
        (json!({ "Path": 1 }), Some("path")),
        (json!({ "\u{212a}ey": 1 }), Some("key")),
        (json!({ "in": { "Deep": 1 } }), Some("deep")),
        (json!({ "in": { "more": { "DEEP": 1 } } }), None),
        (json!({ "all": [1, { "each": 1 }, { "eAch": 1 }] }), Some("each")),
    ] {
        assert_eq!(misspelled(&schema, &arguments).as_deref(), found, "{arguments}");
    }
    let any = json!({ "Path": 1 });
    for schema in [json!({}), json!(true), json!({ "properties": [] })] {
        assert_eq!(misspelled(&schema, &any), None, "{schema}");
    }
}

#[test]
fn misspelling_is_found_wherever_the_schema_declares_the_name() {
    let path = json!({ "properties": { "path": {} } });
    let to = |place: &str| json!({ "$ref": place });
    let wrong = json!({ "where": { "Path": 1 } });
    let (list, lists) =
        (json!({ "where": [{ "Path": 1 }] }), json!({ "where": [[{ "Path": 1 }]] }));
    let other = json!({ "where": { "other": { "Path": 1 } } });
    for (schema, arguments) in [
        (to("#/$defs/W"), &wrong),
        (to("#/%24defs/W"), &wrong),
        (to("#w"), &wrong),
        (json!({ "anyOf": [to("#/$defs/W"), { "type": "null" }] }), &wrong),
        (json!({ "oneOf": [{ "type": "null" }, path] }), &wrong),
        (json!({ "allOf": [to("#/$defs/W"), { "properties": { "b": {} } }] }), &wrong),
        (json!({ "if": {}, "then": path }), &wrong),
        (json!({ "not": path }), &wrong),
        (json!({ "required": ["path"] }), &wrong),
        (json!({ "dependentRequired": { "b": ["path"] } }), &wrong),
        (json!({ "dependentSchemas": { "path": {} } }), &wrong),
        (json!({ "dependencies": { "path": ["b"] } }), &wrong),
        (json!({ "propertyNames": { "enum": ["path"] } }), &wrong),
        (json!({ "propertyNames": { "$ref": "#/$defs/N" } }), &wrong),
        (json!({ "propertyNames": { "anyOf": [{ "const": "path" }, { "type": "x" }] } }), &wrong),
        (json!({ "propertyNames": { "allOf": [{ "pattern": "^path$" }] } }), &wrong),
        (json!({ "patternProperties": { "^path$": {} } }), &wrong),
        (json!({ "dependentSchemas": { "b": path } }), &wrong),
        (json!({ "dependencies": { "b": path } }), &wrong),
        (json!({ "items": to("#/$defs/W") }), &list),
        (json!({ "prefixItems": [{}, path] }), &list),
        (json!({ "items": [path] }), &list),
        (json!({ "items": { "anyOf": [{ "items": to("#/$defs/W") }, {}] } }), &lists),
        (json!({ "additionalProperties": to("#/$defs/W") }), &other),
        (json!({ "patternProperties": { "^o": path } }), &other),
        (json!({ "properties": { "other": {} }, "patternProperties": { "^o": path } }), &other),
        (
            json!({ "properties": { "other": {} }, "allOf": [{ "additionalProperties": path }] }),
            &other,
        ),
    ] {
        let named = json!({ "$anchor": "w", "properties": { "path": {} } });
        let defs = json!({ "W": named, "N": { "enum": ["path"] }, "T": { "properties": { "where": schema } } });
        let direct = json!({ "properties": { "where": schema }, "$defs": defs });
        let root = json!({ "$ref": "#/$defs/T", "$defs": defs });
        let combined = json!({ "allOf": [{ "$ref": "#/$defs/T" }], "$defs": defs });
        for tool in [direct, root, combined] {
            let right = arguments.to_string().replace("Path", "path");
            let right = serde_json::from_str(&right).unwrap();
            assert_eq!(misspelled(&tool, arguments).as_deref(), Some("path"), "{tool}");
            assert_eq!(misspelled(&tool, &right), None, "{tool}");
        }
    }
    // A branch's own name is its own, whatever another has.
    let both = json!({ "anyOf": [path, { "properties": { "Path": {} } }] });
    assert_eq!(misspelled(&both, &json!({ "Path": 1, "path": 1 })), None);
}

#[test]
fn name_patterns_are_matched_case_sensitively() {
    let of = |patterns: &[&str]| -> Value {
        let patterns: Map<_, _> = patterns.iter().map(|p| ((*p).into(), json!({}))).collect();
        json!({ "patternProperties": patterns })
    };
    let refers = json!({ "propertyNames": { "$ref": "#/$defs/N" },
        "$defs": { "N": { "pattern": "^(path|dir)$" } } });
    let elsewhere = json!({ "$ref": "urn:elsewhere", "$defs": { "O": of(&["^(path|dir)$"]) } });
    let unknown = json!({ "propertyNames": { "$ref": "urn:elsewhere" },
        "$defs": { "N": { "required": ["path"] } } });
    let listed_elsewhere = json!({ "$ref": "urn:elsewhere", "$defs": {
        "O": { "propertyNames": { "anyOf": [{ "$ref": "#/$defs/N" }, { "maxLength": 1 }] } },
        "N": { "enum": ["path"] } } });
    let camel_case = json!({ "propertyNames": { "pattern": "^[a-z][A-Za-z_]*$" },
        "patternProperties": { "^(path|dir)_name$": {} } });
    for (schema, right, wrong) in [
        (of(&["^(path|dir)$"]), "path", "Path"),
        (of(&["^(path|dir)$"]), "other", "DIR"),
        (of(&["^(?:path|dir)_name$"]), "dir_name", "dir_Name"),
        (of(&["^[a-z]+$"]), "path", "PATH"),
        (of(&["_key$"]), "api_key", "API_KEY"),
        (of(&["^[\\w.-]{1,64}$", "^(path|dir)$"]), "path", "PATH"),
        (of(&["^[A-Za-z0-9._-]{1,253}$", "^(path|dir)$"]), "path", "PATH"),
        (of(&["^.{1,256}$", "^[^/]{1,128}$", "^(path|dir)$"]), "path", "PATH"),
        (of(&["^\\S{1,100}$", "^(größe|dir)$"]), "größe", "GrÖße"),
        (of(&["^(GRÖẞE|dir)$"]), "GRÖẞE", "grÖẞE"),
        (of(&["^\\p{L}[\\p{L}\\d_]{0,3}$", "^(ab|dir)$"]), "ab", "AB"),
        (of(&["^\\cA(path|dir)$"]), "path", "\u{1}PATH"),
        (of(&["^x-"]), "x-force", "X-Force"),
        (of(&["^k$"]), "k", "\u{212a}"),
        (of(&["^(k|l)$"]), "k", "\u{212a}"),
        (json!({ "propertyNames": { "pattern": "^(path|dir)$" } }), "path", "Path"),
        (refers, "path", "PATH"),
        (elsewhere, "path", "PATH"),
        (unknown, "path", "PATH"),
        (listed_elsewhere, "path", "PATH"),
        (camel_case, "path_name", "path_Name"),
        // A pattern of any case excuses none that another means; one of this case does.
        (of(&[".", "^(path|dir)$"]), "path", "PATH"),
        (of(&["^[a-z]+$", "^[A-Z]+$"]), "PATH", "Path"),
    ] {
        assert_eq!(misspelled(&schema, &json!({ right: 1 })), None, "{schema}");
        assert!(misspelled(&schema, &json!({ wrong: 1 })).is_some(), "{schema}");
    }
    // What cannot be read may mean any name.
    let unreadable = of(&["^(?!a)(path|dir)$"]);
    let hold = |arguments: Value| SchemaNames::of(&unreadable).hold(arguments.as_object().unwrap());
    assert_eq!(hold(json!({ "path": 1 })), Err(NameError::Unreadable("^(?!a)(path|dir)$")));
    assert_eq!(hold(json!({})), Ok(()));
    let many: Vec<_> = (0..=PARTS / PATTERN_PARTS).map(|at| format!("^(a{at}|b)$")).collect();
    let many = of(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let arguments = json!({ "c": 1 });
    assert_eq!(
        SchemaNames::of(&many).hold(arguments.as_object().unwrap()),
        Err(NameError::TooLarge)
    );
    // Matching is charged by the bytes of the names.
    let one = of(&["^(path|dir)$"]);
    let long: Map<_, _> =
        (0..5).map(|at| (format!("{at}{}", "x".repeat(90_000)), json!(1))).collect();
    assert_eq!(SchemaNames::of(&one).hold(&long), Err(NameError::TooLarge));
}

/// Each form of reference leads from `opts` to a definition that declares `force`.
#[test]
fn references_by_identifier_are_followed() {
    let named = json!({ "properties": { "force": {} } });
    let decoy = json!({ "properties": { "other": {} } });
    let to = |reference: &str| json!({ "opts": { "$ref": reference } });
    for schema in [
        json!({ "$id": "urn:x", "properties": to("urn:x#/$defs/O"), "$defs": { "O": named } }),
        json!({ "$id": "https://h.example/s.json", "properties": to("s.json#/$defs/O"), "$defs": { "O": named } }),
        json!({ "$id": "https://h.example/s.json", "properties": to("/s.json#/%24defs/O"), "$defs": { "O": named } }),
        json!({ "id": "urn:x", "properties": to("urn:x#/definitions/O"), "definitions": { "O": named } }),
        json!({ "$id": "urn:x", "properties": to("o.json"), "$defs": { "O": { "$id": "o.json", "allOf": [named] } } }),
        json!({ "$id": "urn:x", "properties": to("o"), "$defs": { "O": { "$id": "urn:o", "allOf": [named] } } }),
        json!({ "properties": to("#o"), "definitions": { "O": { "$id": "#o", "allOf": [named] } } }),
        json!({ "properties": to("#o"), "definitions": { "O": { "id": "#o", "allOf": [named] } } }),
        json!({ "$id": "urn:x", "properties": to("urn:x#o"), "$defs": { "O": { "$anchor": "o", "allOf": [named] } } }),
        json!({ "properties": { "opts": { "$dynamicRef": "#o" } },
            "$defs": { "O": { "$dynamicAnchor": "o", "allOf": [named] } } }),
        // Within an embedded resource, `#` is that resource, and to some the document.
        json!({ "$defs": { "O": decoy }, "properties": { "opts": {
            "$id": "urn:y", "$ref": "#/$defs/O", "$defs": { "O": named } } } }),
        json!({ "$defs": { "O": named }, "properties": { "opts": {
            "$id": "urn:y", "$ref": "#/$defs/O", "$defs": { "O": decoy } } } }),
        json!({ "properties": { "opts": { "$id": "urn:y", "$recursiveAnchor": true,
            "allOf": [named, { "additionalProperties": { "$recursiveRef": "#" } }] } } }),
        // What leads out of the document may name what the document names somewhere.
        json!({ "properties": to("https://elsewhere.example/o.json"), "$defs": { "O": named } }),
        json!({ "properties": to("#/$defs/none"), "$defs": { "O": named } }),
        json!({ "properties": to("o.json#/$defs/O"), "$defs": { "O": named } }),
        json!({ "allOf": [{ "$ref": "urn:elsewhere" }], "$defs": { "O": named } }),
        json!({ "additionalProperties": { "$ref": "urn:elsewhere" }, "$defs": { "O": named } }),
    ] {
        for wrong in [json!({ "Force": true }), json!({ "force": false, "Force": true })] {
            let wrong = json!({ "opts": wrong });
            assert_eq!(misspelled(&schema, &wrong).as_deref(), Some("force"), "{schema}");
        }
        for right in [json!({ "force": true }), json!({ "http_proxy": 1, "HTTP_PROXY": 1 })] {
            assert_eq!(misspelled(&schema, &json!({ "opts": right })), None, "{schema}");
        }
    }
    // Below what is not known nothing is known either.
    let schema = json!({ "properties": to("urn:x"), "$defs": { "O": named } });
    for wrong in [json!({ "a": { "FORCE": 1 } }), json!({ "a": [[{ "FORCE": 1 }]] })] {
        assert!(misspelled(&schema, &json!({ "opts": wrong })).is_some(), "{wrong}");
    }
    assert_eq!(misspelled(&schema, &json!({ "other": { "FORCE": 1 } })), None);
    let both = json!({ "properties": to("urn:x"), "$defs": { "O": { "required": ["a", "A"] } } });
    assert!(misspelled(&both, &json!({ "opts": { "a": 1 } })).is_some());
}

#[test]
fn schema_with_too_many_resources_is_refused() {
    let resources: Map<_, _> =
        (0..1000).map(|at| (format!("r{at}"), json!({ "$id": format!("urn:r{at}") }))).collect();
    let all: Vec<_> = (0..1000).map(|at| json!({ "$ref": format!("#/$defs/r{at}") })).collect();
    let large = json!({ "allOf": all, "$defs": resources });
    let arguments = json!({ "n": 1 });
    assert_eq!(
        SchemaNames::of(&large).hold(arguments.as_object().unwrap()),
        Err(NameError::TooLarge)
    );
}

#[test]
fn recursive_schema_is_followed_and_oversized_one_refused() {
    let tree = json!({ "$ref": "#/$defs/T", "$defs": { "T": {
        "anyOf": [{ "$ref": "#" }, { "$ref": "#/$defs/T" }],
        "properties": { "left": { "$ref": "#/$defs/T" }, "right": { "$ref": "#" }, "name": {} },
    } } });
    let grown = |leaf: Value| (0..50).fold(leaf, |tree, _| json!({ "left": { "right": tree } }));
    assert_eq!(misspelled(&tree, &grown(json!({ "name": 1 }))), None);
    assert_eq!(misspelled(&tree, &grown(json!({ "Name": 1 }))).as_deref(), Some("name"));
    let names: Map<_, _> = (0..=PARTS).map(|at| (format!("n{at}"), json!({}))).collect();
    let large = json!({ "properties": names });
    let arguments = json!({ "n1": 1 });
    assert_eq!(
        SchemaNames::of(&large).hold(arguments.as_object().unwrap()),
        Err(NameError::TooLarge)
    );
}

#[test]
fn prompt_argument_names_must_match_the_list() {
    let listed = json!([{ "name": "path" }, { "name": "Key" }, { "name": "key" }, {}]);
    let hold = |params: Value| listed_names(Some(&listed), &params).is_err();
    assert!(!hold(json!({ "name": "p", "arguments": { "path": "x", "Key": "x", "more": "x" } })));
    assert!(hold(json!({ "name": "p", "arguments": { "Path": "x" } })));
    assert!(!hold(json!({ "argument": { "name": "path", "value": "Path" } })));
    assert!(hold(json!({ "argument": { "name": "PATH", "value": "x" } })));
    let before =
        json!({ "argument": { "name": "key" }, "context": { "arguments": { "Path": "" } } });
    assert!(hold(before));
    assert_eq!(listed_names(None, &json!({ "arguments": { "Path": "x" } })), Ok(()));
}
