//! Text formats, as people and line parsers read them.

use super::{
    super::{Format, lines, message},
    *,
};

fn text(format: Format, item: &Item) -> String {
    let text = lines(format, std::slice::from_ref(item), &origin(), false).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn jsonl_equals_the_stored_bytes() {
    let samples = samples();
    let written = lines(Format::Jsonl, &samples, &origin(), true).unwrap();
    let stored: Vec<u8> = samples.iter().flat_map(|i| [&i.line[..], b"\n"].concat()).collect();
    assert_eq!(written, stored);
}

#[test]
fn cef_escapes_special_characters() {
    let samples = samples();
    let intent = text(Format::Cef, &samples[0]);
    assert_eq!(intent.matches('\n').count(), 1, "{intent}");
    assert!(!intent.trim_end().contains(char::is_control), "{intent:?}");
    insta::with_settings!({filters => vec![("[0-9a-f]{64}", "[HASH]")]}, {
        insta::assert_snapshot!(intent, @r##"
        CEF:0|Portcullis|Portcullis|1.2.3|intent|tools/call intent|1|rt=1795276800123 start=1795276799500 externalId=019a4c7e-0000-7000-8000-000000000001 cat=intent dvchost=gate1 suser=ci-bot app=MCP deviceDirection=0 src=192.0.2.7 spt=4000 proto=TCP requestMethod=tools/call cs1Label=tool cs1=\=re\\ad|x\=1] "y"\n\r�[2J� destinationServiceName=notes act=allowed cs4Label=session cs4=s-1 cs5Label=trace cs5=4bf92f3577b34da6a3ce929d0e0e4736 flexString1Label=labels flexString1=pii,web cs6Label=recordHash cs6=[HASH] flexString2Label=previousHash flexString2=[HASH] cn1Label=seq cn1=0 in=120
        "##);
        insta::assert_snapshot!(text(Format::Cef, &samples[2]), @r##"
        CEF:0|Portcullis|Portcullis|1.2.3|policy-denied|tools/call refused|5|rt=1795276800125 start=1795276799500 externalId=019a4c7e-0000-7000-8000-000000000001 cat=refused dvchost=gate1 suser=ci-bot app=MCP deviceDirection=0 src=192.0.2.7 spt=4000 proto=TCP requestMethod=tools/call cs1Label=tool cs1=\=re\\ad|x\=1] "y"\n\r�[2J� destinationServiceName=notes act=refused outcome=failure reason=policy-denied msg=rule says no cs2Label=rule cs2=no-destructive cs3Label=policyRevision cs3=r1 cs4Label=session cs4=s-1 cs5Label=trace cs5=4bf92f3577b34da6a3ce929d0e0e4736 flexString1Label=labels flexString1=pii,web cs6Label=recordHash cs6=[HASH] flexString2Label=previousHash flexString2=[HASH] cn1Label=seq cn1=2 cn2Label=totalMicroseconds cn2=90 in=120
        "##);
        insta::assert_snapshot!(text(Format::Cef, &samples[6]), @r##"
        CEF:0|Portcullis|Portcullis|1.2.3|malformed|message refused|3|rt=1795276800129 start=1795276799000 externalId=019a4c7e-0000-7000-8000-000000000001 cat=refused dvchost=gate1 app=MCP deviceDirection=0 c6a2=2001:db8::1 c6a2Label=Source IPv6 Address spt=5 proto=TCP act=refused outcome=failure reason=malformed msg=not JSON cs6Label=recordHash cs6=[HASH] flexString2Label=previousHash flexString2=[HASH] cn1Label=seq cn1=6 cn2Label=totalMicroseconds cn2=5
        "##);
    });
}

#[test]
fn cef_is_parsed_back() {
    for item in samples() {
        let line = text(Format::Cef, &item);
        let mut header = Vec::new();
        let mut field = String::new();
        let mut rest = line.trim_end().chars();
        while header.len() < 7 {
            match rest.next().unwrap() {
                '\\' => field.push(rest.next().unwrap()),
                '|' => header.push(std::mem::take(&mut field)),
                c => field.push(c),
            }
        }
        assert_eq!(header[..4], ["CEF:0", "Portcullis", "Portcullis", "1.2.3"]);
        assert!((0..=10).contains(&header[6].parse::<u8>().unwrap()), "{line}");
        // A key follows a space and precedes an unescaped `=`.
        let extension: String = rest.collect();
        let unescaped = extension.replace("\\\\", "").replace("\\=", "");
        let keys: Vec<&str> =
            unescaped.split('=').map(|part| part.rsplit(' ').next().unwrap()).collect();
        for key in &keys[..keys.len() - 1] {
            assert!(key.bytes().all(|b| b.is_ascii_alphanumeric()), "`{key}` in {line}");
        }
        assert!(extension.contains("cs6Label=recordHash cs6="), "{line}");
    }
}

#[test]
fn syslog_is_rfc_5424() {
    let samples = samples();
    let sent = String::from_utf8(message(Format::Syslog, &samples[0], &origin()).unwrap()).unwrap();
    let (envelope, payload) = sent.split_once("\"] ").unwrap();
    assert_eq!(payload.as_bytes(), samples[0].line);
    insta::with_settings!({filters => vec![("[0-9a-f]{64}", "[HASH]")]}, {
        insta::assert_snapshot!(envelope, @r##"
        <110>1 2026-11-21T16:00:00.123456Z gate1 portcullis 42 intent [portcullis@32473 log="0f1e2d3c" seq="0" hash="[HASH]" prev="[HASH]" id="019a4c7e-0000-7000-8000-000000000001" principal="ci-bot" method="tools/call" server="notes" tool="=re\\ad|x=1\] \"y\"���[2J�" decision="allowed
        "##);
    });
    for item in &samples {
        for payload in [Format::Syslog, Format::Cef, Format::Ocsf] {
            let sent = message(payload, item, &origin()).unwrap();
            let sent = String::from_utf8(sent).unwrap();
            assert!(!sent.contains(char::is_control), "{sent:?}");
            let mut fields = sent.splitn(7, ' ');
            let priority = fields.next().unwrap();
            let number = priority.strip_prefix('<').and_then(|p| p.strip_suffix(">1")).unwrap();
            assert!((104..112).contains(&number.parse::<u8>().unwrap()), "{priority}");
            fields.next().unwrap().parse::<jiff::Timestamp>().unwrap();
            assert_eq!(fields.next(), Some("gate1"));
            assert_eq!(fields.next(), Some("portcullis"));
            assert_eq!(fields.next(), Some("42"));
            let id = fields.next().unwrap();
            assert!(id.len() <= 32 && id.bytes().all(|b| b.is_ascii_graphic()), "{id}");
            let data = fields.next().unwrap();
            let data = data.strip_prefix("[portcullis@32473 ").unwrap();
            elements(data);
        }
    }
}

/// Parses structured data up to its end.
fn elements(data: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut rest = data.chars();
    loop {
        let name: String = rest.by_ref().take_while(|c| *c != '=').collect();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase()), "{name} in {data}");
        assert_eq!(rest.next(), Some('"'));
        let mut value = String::new();
        loop {
            match rest.next().unwrap() {
                '\\' => value.push(rest.next().unwrap()),
                '"' => break,
                c => {
                    assert_ne!(c, ']', "{data}");
                    value.push(c);
                }
            }
        }
        all.push((name, value));
        match rest.next() {
            Some(']') => return all,
            Some(' ') => {}
            other => panic!("{other:?} in {data}"),
        }
    }
}

#[test]
fn syslog_host_name_contains_only_legal_characters() {
    let samples = samples();
    for (host, shown) in [(None, "-"), (Some("a b\nc\u{e9}"), "abc"), (Some("\u{e9}"), "-")] {
        let origin = Origin { host: host.map(str::to_owned), ..origin() };
        let sent = String::from_utf8(message(Format::Syslog, &samples[0], &origin).unwrap());
        assert_eq!(sent.unwrap().split(' ').nth(2), Some(shown));
    }
}

#[test]
fn csv_round_trips_and_contains_no_formula() {
    let samples = samples();
    let written = lines(Format::Csv, &samples, &origin(), true).unwrap();
    let mut reader = csv::Reader::from_reader(&written[..]);
    let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let known: Vec<&str> = super::super::columns::COLUMNS.iter().map(|c| c.name).collect();
    assert_eq!(names, known);
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), samples.len());
    let at = |name: &str| known.iter().position(|known| *known == name).unwrap();
    for (row, item) in rows.iter().zip(&samples) {
        assert_eq!(&row[at("seq")], item.seq.to_string());
        assert_eq!(row[at("line")].as_bytes(), item.line);
        for cell in row {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?}");
        }
    }
    assert_eq!(&rows[0][at("target")], format!("'{HOSTILE}"));
    let more = lines(Format::Csv, &samples[..1], &origin(), false).unwrap();
    assert!(more.starts_with(b"0,"), "names stand once");
}
