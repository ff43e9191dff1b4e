//! OCSF events against the requirements of schema version 1.9.0. (The events were once checked
//! against the whole schema; these are the parts that can break.)

use serde_json::Value;

use super::{super::ocsf::event, *};

/// Every used class: its number, its category, its activities, and the members that it requires
/// beside the common ones.
const CLASSES: &[(u64, u64, &[u64], &[&str])] = &[
    (0, 0, &[99], &[]),
    (2004, 2, &[1], &["finding_info"]),
    (3002, 3, &[1, 2, 99], &["user"]),
    (3004, 3, &[1, 2, 3, 4], &["entity"]),
    (4001, 4, &[1, 2], &["dst_endpoint"]),
    (6002, 6, &[1, 3, 4, 6], &["app"]),
    (6003, 6, &[2, 99], &["actor", "api", "src_endpoint"]),
    (6008, 6, &[1], &[]),
];

const ALWAYS: &[&str] =
    &["activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"];

/// Objects by member name: their required members, and members of which one is required.
const OBJECTS: &[(&str, &[&str], &[&str])] = &[
    ("metadata", &["product", "version"], &[]),
    ("product", &[], &["name", "uid"]),
    ("app", &[], &["name", "uid"]),
    ("actor", &[], &["user", "app_name", "session"]),
    ("user", &[], &["name", "uid"]),
    ("api", &["operation"], &[]),
    ("request", &["uid"], &[]),
    ("service", &[], &["name", "uid"]),
    ("src_endpoint", &[], &["name", "uid", "ip", "hostname"]),
    ("dst_endpoint", &[], &["name", "uid", "ip", "hostname"]),
    ("resources", &[], &["name", "uid"]),
    ("policy", &[], &["name", "uid"]),
    ("entity", &[], &["name", "uid"]),
    ("finding_info", &["uid"], &[]),
    ("analytic", &["type_id"], &["name", "uid"]),
    ("trace", &["uid"], &[]),
    ("attestation_list", &[], &["fingerprint"]),
    ("prev_event", &["uid"], &[]),
    ("fingerprint", &["algorithm_id", "value"], &[]),
];

fn check(value: &Value, within: &str) {
    match value {
        Value::Array(all) => all.iter().for_each(|each| check(each, within)),
        Value::Object(members) => {
            if let Some((_, all, one)) = OBJECTS.iter().find(|(name, ..)| *name == within) {
                for key in *all {
                    assert!(members.contains_key(*key), "{within} lacks {key}: {value:#}");
                }
                let any = one.is_empty() || one.iter().any(|key| members.contains_key(*key));
                assert!(any, "{within} has none of {one:?}: {value:#}");
            }
            for (key, member) in members.iter().filter(|(key, _)| *key != "unmapped") {
                assert!(!member.is_null(), "{key} is null in {within}");
                check(member, key);
            }
        }
        _ => {}
    }
}

#[test]
fn events_have_the_required_attributes_of_their_class() {
    let mut classes = std::collections::BTreeSet::new();
    for item in samples() {
        let event = event(&item, &origin());
        let uid = event["class_uid"].as_u64().unwrap();
        classes.insert(uid);
        let (_, category, activities, required) =
            CLASSES.iter().find(|(class, ..)| *class == uid).unwrap();
        assert_eq!(event["category_uid"], *category);
        let activity = event["activity_id"].as_u64().unwrap();
        assert!(activities.contains(&activity), "{event:#}");
        assert_eq!(event["type_uid"], uid * 100 + activity);
        for key in ALWAYS.iter().chain(*required) {
            assert!(!event[key].is_null(), "{key} is missing: {event:#}");
        }
        check(&event, "");
    }
    assert_eq!(
        classes.into_iter().collect::<Vec<_>>(),
        [0, 2004, 3002, 3004, 4001, 6002, 6003, 6008]
    );
}

#[test]
fn attestation_is_verifiable_from_the_events() {
    let events: Vec<Value> = samples().iter().map(|item| event(item, &origin())).collect();
    let mut before: Option<&Value> = None;
    for event in &events {
        let raw = event["raw_data"].as_str().unwrap();
        let hash = Hash::leaf(raw.as_bytes()).to_string();
        let attestation = &event["attestation_list"][0];
        assert_eq!(attestation["fingerprint"]["value"], hash);
        assert_eq!(attestation["chain_uid"], "0f1e2d3c");
        assert_eq!(attestation["uid"], event["metadata"]["uid"]);
        assert_eq!(event["metadata"]["profiles"][0], "record_integrity");
        match before {
            Some(before) => {
                let before = &before["attestation_list"][0];
                assert_eq!(attestation["prev_event"]["uid"], before["uid"]);
                let named = &attestation["prev_event"]["fingerprint"];
                assert_eq!(named["value"], before["fingerprint"]["value"]);
            }
            None => assert!(attestation.get("prev_event").is_none()),
        }
        before = Some(event);
    }
}

#[test]
fn refusals_are_findings_with_the_deciding_rule() {
    let finding = event(&samples()[2], &origin());
    assert_eq!(finding["class_uid"], 2004);
    assert_eq!(finding["finding_info"]["analytic"]["uid"], "no-destructive");
    assert_eq!(finding["policy"]["version"], "r1");
    assert_eq!(
        (&finding["action"], &finding["disposition"]),
        (&"Denied".into(), &"Blocked".into())
    );
    assert_eq!(finding["severity"], "Medium");
    let leaked = event(&samples()[3], &origin());
    assert_eq!((&leaked["class_uid"], &leaked["severity"]), (&2004.into(), &"High".into()));
}

#[test]
fn addresses_are_not_exported_as_host_names() {
    let events = events();
    let sample = |name: &str| {
        let all = events.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
        all.into_iter().find(|event| event["event"] == name).unwrap()
    };
    let (mut reaching, mut opened) = (sample("egress-connecting"), sample("egress-opened"));
    for (host, ip) in [
        ("web.example", None),
        ("192.0.2.7", Some("192.0.2.7")),
        ("2001:db8::7", Some("2001:db8::7")),
    ] {
        let in_url = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        reaching["host"] = host.into();
        opened["url"] = format!("https://{in_url}/mcp").into();
        let texts = [reaching.to_string(), opened.to_string()];
        for item in chained(texts.iter().map(String::as_str)) {
            let event = event(&item, &origin());
            let endpoint = &event["dst_endpoint"];
            assert_eq!(endpoint["ip"].as_str(), ip, "{endpoint}");
            let name = endpoint["hostname"].as_str();
            assert_eq!(name, ip.is_none().then_some(host), "{endpoint}");
        }
    }
}
