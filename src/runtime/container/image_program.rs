//! Entry point of an image that the engine has.

use super::{
    Engine,
    engine_errors::{missing, words},
    failure,
};
use crate::process::LaunchFailure;
use portcullis_oci::Program;

impl Engine {
    /// Program, arguments and user of an image; `None` if the engine does not have the image.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn program(&self, image: &str) -> Result<Option<Program>, LaunchFailure> {
        match self.docker.inspect_image(image).await {
            Ok(found) => {
                let config = found.config.unwrap_or_default();
                Ok(Some(Program {
                    entrypoint: config.entrypoint.unwrap_or_default(),
                    arguments: config.cmd.unwrap_or_default(),
                }))
            }
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(failure(
                format!("the engine could not look up the image `{image}`: {}", words(&error)),
                "check the engine: `portcullis doctor`",
            )),
        }
    }
}
