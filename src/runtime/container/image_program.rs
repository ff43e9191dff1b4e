//! The program of an image that the engine has.

use super::{
    Engine,
    engine::{missing, words},
    failure,
};
use crate::process::LaunchFailure;
use portcullis_oci::Program;

impl Engine {
    /// How an image is run that the engine has; nothing where it has not got it.
    ///
    /// # Errors
    /// Where the engine does not say.
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
                "see that the engine is well: `portcullis doctor`",
            )),
        }
    }
}
