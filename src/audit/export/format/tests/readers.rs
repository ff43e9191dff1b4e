//! Binary formats and OTLP, read by other implementations.

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{KeyValue, any_value},
};
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, RowAccessor as _},
};

use super::{
    super::{Format, Writer, columns::COLUMNS, lines},
    *,
};

#[test]
fn parquet_round_trips() {
    let mut samples = samples();
    // More than one row group.
    let few = samples.clone();
    while samples.len() < 17_000 {
        samples.extend(few.iter().cloned());
    }
    let mut writer = Writer::new(Format::Parquet, origin(), Vec::new()).unwrap();
    for part in samples.chunks(500) {
        writer.write(part.to_vec()).unwrap();
    }
    let file = Bytes::from(writer.finish().unwrap());
    let reader = SerializedFileReader::new(file).unwrap();
    let metadata = reader.metadata();
    assert_eq!(metadata.num_row_groups(), 2);
    let schema = metadata.file_metadata().schema_descr();
    let names: Vec<&str> = schema.columns().iter().map(|column| column.name()).collect();
    assert_eq!(names, COLUMNS.iter().map(|column| column.name).collect::<Vec<_>>());
    let of = |name: &str| names.iter().position(|known| *known == name).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), samples.len());
    for (row, item) in rows.iter().zip(&samples) {
        assert_eq!(row.get_long(of("seq")).unwrap(), item.seq.0 as i64);
        assert_eq!(row.get_string(of("line")).unwrap().as_bytes(), item.line);
        let recorded = row.get_timestamp_micros(of("recorded")).unwrap();
        assert_eq!(recorded, item.recorded.as_microsecond());
    }
    assert_eq!(rows[0].get_string(of("target")).unwrap(), HOSTILE);
    assert!(rows[0].get_bool(of("verified")).unwrap());
    let null = |row: usize, name: &str| {
        matches!(rows[row].get_column_iter().nth(of(name)), Some((_, Field::Null)))
    };
    assert!(null(0, "code") && null(0, "total_us") && null(6, "principal"));
    assert_eq!(rows[1].get_long(of("server_us")).unwrap(), 1200);
}

#[test]
fn empty_parquet_and_csv_files_are_valid() {
    let writer = Writer::new(Format::Parquet, origin(), Vec::new()).unwrap();
    let file = Bytes::from(writer.finish().unwrap());
    assert_eq!(SerializedFileReader::new(file).unwrap().metadata().num_row_groups(), 0);
    let writer = Writer::new(Format::Csv, origin(), Vec::new()).unwrap();
    assert!(writer.finish().unwrap().starts_with(b"seq,"));
}

fn get<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a any_value::Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()
}

#[test]
fn otlp_is_parsed_by_the_protocols_types() {
    let samples = samples();
    let body = lines(Format::Otlp, &samples, &origin(), true).unwrap();
    let request: ExportLogsServiceRequest = serde_json::from_slice(&body).unwrap();
    let resource = request.resource_logs[0].resource.as_ref().unwrap();
    assert_eq!(
        get(&resource.attributes, "service.instance.id"),
        Some(&any_value::Value::StringValue("0f1e2d3c".into()))
    );
    let records = &request.resource_logs[0].scope_logs[0].log_records;
    assert_eq!(records.len(), samples.len());
    for (record, item) in records.iter().zip(&samples) {
        assert_eq!(u128::from(record.time_unix_nano), item.record.at().as_nanosecond() as u128);
        assert_eq!(
            u128::from(record.observed_time_unix_nano),
            item.recorded.as_nanosecond() as u128
        );
        let body = record.body.as_ref().unwrap().value.as_ref().unwrap();
        let text = std::str::from_utf8(&item.line).unwrap();
        assert_eq!(body, &any_value::Value::StringValue(text.into()));
        let seq = get(&record.attributes, "portcullis.seq");
        assert_eq!(seq, Some(&any_value::Value::IntValue(item.seq.0 as i64)));
        assert!((1..=24).contains(&record.severity_number));
    }
    let tool = get(&records[0].attributes, "gen_ai.tool.name");
    assert_eq!(tool, Some(&any_value::Value::StringValue(HOSTILE.into())));
    assert_eq!(hex::encode(&records[0].trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(records[2].event_name, "portcullis.audit.refused");
    // Serializing it with the protocol's own types gives the same.
    let decoded: ExportLogsServiceRequest =
        serde_json::from_value(serde_json::to_value(&request).unwrap()).unwrap();
    assert_eq!(decoded, request);
}
