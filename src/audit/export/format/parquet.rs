//! Apache Parquet: the columns of `columns.rs`, typed, in row groups compressed with zstd. Uses the
//! crate's own writer: records have few columns of plain values, for which Arrow would add a second
//! copy and many crates.

use std::{io::Write, sync::Arc};

use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel},
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int64Type},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::{Type, TypePtr},
};

use super::{
    super::Item,
    Fault, Origin,
    columns::{COLUMNS, Column, Kind, Value},
};

/// Records in a row group. All of them are in memory until the group is written.
const GROUP: usize = 16 * 1024;

impl From<ParquetError> for Fault {
    fn from(error: ParquetError) -> Self {
        Self(format!("the export can't be written as Parquet: {error}"))
    }
}

fn schema() -> Result<TypePtr, Fault> {
    let fields = COLUMNS.iter().map(|column| {
        let (physical, logical) = match column.kind {
            Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Kind::Integer => (Physical::INT64, None),
            Kind::Boolean => (Physical::BOOLEAN, None),
            Kind::Time => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MICROS))),
        };
        let repetition = if column.always { Repetition::REQUIRED } else { Repetition::OPTIONAL };
        Type::primitive_type_builder(column.name, physical)
            .with_repetition(repetition)
            .with_logical_type(logical)
            .build()
            .map(Arc::new)
    });
    let fields = fields.collect::<Result<_, _>>()?;
    Ok(Arc::new(Type::group_type_builder("record").with_fields(fields).build()?))
}

/// A file that is being written.
pub(super) struct File<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    waiting: Vec<Item>,
}

impl<W: Write + Send> File<W> {
    pub fn new(origin: &Origin, out: W) -> Result<Self, Fault> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(format!("portcullis {}", origin.version))
            .set_key_value_metadata(Some(vec![KeyValue::new(
                "portcullis.log".to_owned(),
                origin.log.clone(),
            )]))
            .build();
        let writer = SerializedFileWriter::new(out, schema()?, Arc::new(properties))?;
        Ok(Self { writer, waiting: Vec::new() })
    }

    pub fn write(&mut self, items: Vec<Item>) -> Result<(), Fault> {
        self.waiting.extend(items);
        while self.waiting.len() >= GROUP {
            let rest = self.waiting.split_off(GROUP);
            let group = std::mem::replace(&mut self.waiting, rest);
            self.group(&group)?;
        }
        Ok(())
    }

    fn group(&mut self, items: &[Item]) -> Result<(), Fault> {
        let mut rows = self.writer.next_row_group()?;
        for column in COLUMNS {
            let values = items.iter().map(|item| (column.value)(item));
            match column.kind {
                Kind::Text => write::<ByteArrayType>(&mut rows, column, values, |value| {
                    let Value::Text(text) = value else { return None };
                    Some(ByteArray::from(text.into_owned().into_bytes()))
                }),
                Kind::Integer => write::<Int64Type>(&mut rows, column, values, |value| {
                    let Value::Integer(number) = value else { return None };
                    Some(number)
                }),
                Kind::Boolean => write::<BoolType>(&mut rows, column, values, |value| {
                    let Value::Boolean(yes) = value else { return None };
                    Some(yes)
                }),
                Kind::Time => write::<Int64Type>(&mut rows, column, values, |value| {
                    let Value::Time(time) = value else { return None };
                    Some(time.as_microsecond())
                }),
            }?;
        }
        rows.close()?;
        Ok(())
    }

    pub fn finish(mut self) -> Result<W, Fault> {
        let rest = std::mem::take(&mut self.waiting);
        if !rest.is_empty() {
            self.group(&rest)?;
        }
        Ok(self.writer.into_inner()?)
    }
}

/// Writes one column of a row group: the present values and, for an optional column, which records
/// have one.
fn write<'a, T: DataType>(
    rows: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    column: &Column,
    values: impl Iterator<Item = Value<'a>>,
    take: impl Fn(Value<'a>) -> Option<T::T>,
) -> Result<(), Fault> {
    let (mut present, mut levels) = (Vec::new(), Vec::new());
    for value in values {
        let value = take(value);
        levels.push(i16::from(value.is_some()));
        present.extend(value);
    }
    if column.always && present.len() != levels.len() {
        return Err(Fault(format!("a record lacks its `{}`", column.name)));
    }
    let Some(mut writer) = rows.next_column()? else {
        return Err(Fault(format!("there is no column `{}` in the file", column.name)));
    };
    let levels = (!column.always).then_some(levels.as_slice());
    writer.typed::<T>().write_batch(&present, levels, None)?;
    writer.close()?;
    Ok(())
}
