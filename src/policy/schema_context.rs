//! The schema of one policy set, with its names.

use cedar_policy::Schema;

use super::{SCHEMA, entities::Vocabulary, index::Terms, typed::Typed};

/// A schema and its names.
pub(super) struct SchemaContext {
    pub(super) schema: Schema,
    pub(super) vocabulary: Vocabulary,
}

impl SchemaContext {
    /// Builds the schema with these typed actions.
    ///
    /// # Errors
    /// If Cedar rejects the schema.
    pub(super) fn new(typed: Typed) -> Result<Self, String> {
        let text = typed.schema().unwrap_or(SCHEMA);
        let (schema, _) = Schema::from_cedarschema_str(text).map_err(|error| error.to_string())?;
        let vocabulary = Vocabulary::new(&schema, typed).map_err(|error| error.to_string())?;
        Ok(Self { schema, vocabulary })
    }

    pub(super) fn terms(&self) -> Terms<'_> {
        Terms { schema: &self.schema, vocabulary: &self.vocabulary }
    }
}
