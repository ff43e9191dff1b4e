//! `portcullis audit export`, with and without a running proxy.

use std::fs;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::RowAccessor as _,
};
use serde_json::{Value, json};

use super::{by_seq, calls, exporting, stored};

#[tokio::test]
async fn every_format_contains_every_record() {
    let gate = exporting("").start().await;
    calls(&gate, 20).await;
    gate.modern().refused("notes__no_such", json!({})).await;
    let running = stored(&gate).await;
    let written = gate.stop().await;
    let all = stored(&written).await;
    assert!(running.iter().all(|(seq, line)| all.get(seq) == Some(line)), "not the same bytes");
    assert_eq!(all.len() as u64, all.keys().next_back().unwrap() + 1);

    for format in ["jsonl", "csv", "parquet", "ocsf", "cef", "syslog", "otlp"] {
        let file = written.path(format).display().to_string();
        let ended = written.cli(&["audit", "export", "--format-out", format, "-o", &file]).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        let bytes = fs::read(&file).unwrap();
        let texts: Vec<String> = match format {
            "parquet" => {
                let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
                let columns = reader.metadata().file_metadata().schema_descr().num_columns();
                let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
                rows.map(|row| row.get_string(columns - 1).unwrap().clone()).collect()
            }
            "csv" => {
                let mut reader = csv::Reader::from_reader(&bytes[..]);
                let rows = reader.records().map(Result::unwrap);
                rows.map(|row| row.iter().next_back().unwrap().to_owned()).collect()
            }
            "otlp" => {
                let text = String::from_utf8(bytes).unwrap();
                let requests = text
                    .lines()
                    .map(|line| serde_json::from_str::<ExportLogsServiceRequest>(line).unwrap());
                requests
                    .flat_map(|request| request.resource_logs)
                    .flat_map(|logs| logs.scope_logs)
                    .flat_map(|logs| logs.log_records)
                    .map(|record| serde_json::to_value(record.body).unwrap())
                    .map(|body| body["stringValue"].as_str().unwrap().to_owned())
                    .collect()
            }
            _ => {
                let text = String::from_utf8(bytes).unwrap();
                let lines = text.lines();
                match format {
                    "ocsf" => lines
                        .map(|line| serde_json::from_str::<Value>(line).unwrap())
                        .map(|event| event["raw_data"].as_str().unwrap().to_owned())
                        .collect(),
                    "syslog" => {
                        lines.map(|line| line.split_once("\"] ").unwrap().1.to_owned()).collect()
                    }
                    "cef" => {
                        assert!(lines.clone().all(|line| line.starts_with("CEF:0|Portcullis|")));
                        assert_eq!(lines.count(), all.len());
                        continue;
                    }
                    _ => lines.map(str::to_owned).collect(),
                }
            }
        };
        assert_eq!(by_seq(texts.iter().map(String::as_str)), all, "{format}");
    }
}

#[tokio::test]
async fn filtered_export_overwrites_no_file() {
    let gate = exporting("").start().await;
    calls(&gate, 3).await;
    gate.modern().refused("notes__no_such", json!({})).await;
    let args = ["audit", "export", "decision = refused"];
    let refused = gate.cli(&args).await;
    assert_eq!(refused.code, Some(0), "{refused:#?}");
    let lines: Vec<&str> = refused.stdout.lines().collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| l.contains("\"decision\":\"refused\"")));
    let none = gate.cli(&["audit", "export", "--until", "1h"]).await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""), "{none:#?}");
    let file = gate.path("kept");
    fs::write(&file, "kept").unwrap();
    let there = gate.cli(&["audit", "export", "-o", file.to_str().unwrap()]).await;
    assert_eq!(there.code, Some(1), "{there:#?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    gate.stop().await;
}
