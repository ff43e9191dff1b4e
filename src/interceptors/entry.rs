//! One `[[interceptors]]` entry: common settings and those of the interceptor that `use` names, in
//! one table.
//!
//! Serde's `flatten` cannot refuse unknown keys, so the two halves are separated by hand, only
//! here.

use std::{borrow::Cow, sync::LazyLock};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use portcullis_chain::Mode;
use portcullis_foundation::json_pointer;

use crate::{EntrySettings, plugin, rate_limit, schema, secrets};

/// Entry of the chain.
#[derive(Debug, Clone, Serialize)]
pub struct InterceptorEntry {
    #[serde(flatten)]
    pub settings: EntrySettings,
    #[serde(flatten)]
    pub kind: InterceptorKind,
}

/// Table of interceptors: the variant, the value of `use`, and the type of the settings. A new
/// interceptor is one line here. The compiler then requires its constructor.
macro_rules! interceptors {
    ($($variant:ident = $name:literal, $config:ty;)*) => {
        /// Interceptor of an entry, with its settings.
        #[derive(Debug, Clone, Serialize)]
        #[serde(tag = "use")]
        pub enum InterceptorKind {
            $(#[serde(rename = $name)] $variant($config),)*
        }

        impl InterceptorKind {
            /// Value of `use`.
            pub fn as_str(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Interceptor with this name and these settings. `None` if there is no such
            /// interceptor.
            fn from_table(
                name: &str,
                table: Map<String, Value>,
            ) -> Option<Result<Self, FieldError>> {
                match name {
                    $($name => Some(typed(table).map(Self::$variant)),)*
                    _ => None,
                }
            }

            /// Schemas of the settings, by the value of `use`.
            fn schemas(generator: &mut SchemaGenerator) -> Vec<(&'static str, Schema)> {
                vec![$(($name, <$config>::json_schema(generator)),)*]
            }
        }
    };
}

interceptors! {
    RateLimit = "rate-limit", rate_limit::Config;
    Schema = "schema", schema::Config;
    Secrets = "secrets", secrets::Config;
    Plugin = "plugin", Box<plugin::Config>;
}

/// Invalid value, with its position in the entry.
#[derive(Debug)]
pub struct FieldError {
    /// JSON pointer, relative to the entry.
    pub pointer: String,
    pub message: String,
}

static SETTINGS: LazyLock<Schema> =
    LazyLock::new(|| EntrySettings::json_schema(&mut SchemaGenerator::default()));

fn is_setting(key: &str) -> bool {
    SETTINGS.get("properties").and_then(|properties| properties.get(key)).is_some()
}

impl InterceptorEntry {
    /// Name in records and refusals: `name`, or the value of `use`.
    pub fn name(&self) -> &str {
        self.settings.name.as_deref().unwrap_or(self.kind.as_str())
    }

    /// Parses an entry.
    pub fn from_table(mut table: Map<String, Value>) -> Result<Self, FieldError> {
        let which = table.remove("use");
        let (settings, own): (Map<_, _>, Map<_, _>) =
            table.into_iter().partition(|(key, _)| is_setting(key));
        let settings = typed(settings)?;
        let name = which.as_ref().and_then(Value::as_str).unwrap_or_default();
        let kind = InterceptorKind::from_table(name, own).unwrap_or_else(|| {
            let message = "`use` must name an interceptor".to_owned();
            Err(FieldError { pointer: "/use".into(), message })
        })?;
        Ok(Self { settings, kind })
    }
}

impl InterceptorEntry {
    /// Whether it inspects messages.
    pub fn is_on(&self) -> bool {
        self.settings.mode != Mode::Off
    }

    /// Whether it is a rate limit.
    pub fn is_rate_limit(&self) -> bool {
        matches!(self.kind, InterceptorKind::RateLimit(_))
    }
}

/// Table as a typed value, or the position of the error.
pub fn typed<T: DeserializeOwned>(table: Map<String, Value>) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(Value::Object(table)).map_err(|error| FieldError {
        pointer: json_pointer::pointer_of(error.path()),
        message: error.into_inner().to_string(),
    })
}

impl<'de> Deserialize<'de> for InterceptorEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = Map::deserialize(deserializer)?;
        Self::from_table(table).map_err(|misfit| serde::de::Error::custom(misfit.message))
    }
}

impl JsonSchema for InterceptorEntry {
    fn schema_name() -> Cow<'static, str> {
        "InterceptorEntry".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let kinds = InterceptorKind::schemas(generator);
        let settings = EntrySettings::json_schema(generator);
        let entries: Vec<Schema> =
            kinds.into_iter().map(|(name, own)| entry(name, &own, &settings)).collect();
        json_schema!({ "description": "One entry of the chain.", "oneOf": entries })
    }
}

/// Schema of an entry of one kind.
fn entry(name: &str, own: &Schema, settings: &Schema) -> Schema {
    let mut properties = Map::new();
    properties.insert(
        "use".into(),
        serde_json::json!({ "description": "Which interceptor this is.", "const": name }),
    );
    let mut required = vec![Value::from("use")];
    for schema in [own, settings] {
        if let Some(Value::Object(more)) = schema.get("properties") {
            properties.extend(more.clone());
        }
        if let Some(Value::Array(more)) = schema.get("required") {
            required.extend(more.iter().cloned());
        }
    }
    json_schema!({
        "type": "object",
        "description": own.get("description").cloned().unwrap_or_else(|| name.into()),
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_round_trips() {
        let table = serde_json::json!({ "use": "schema", "mode": "audit", "name": "shape" });
        let entry: InterceptorEntry = serde_json::from_value(table).unwrap();
        assert_eq!((entry.name(), entry.kind.as_str()), ("shape", "schema"));
        let written = serde_json::to_value(&entry).unwrap();
        assert_eq!(written["use"], "schema");
        let parsed: InterceptorEntry = serde_json::from_value(written).unwrap();
        assert_eq!(parsed.name(), "shape");
    }
}
