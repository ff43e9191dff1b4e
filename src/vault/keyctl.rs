//! Keys of the kernel (keyrings(7)).

use linux_keyutils::{KeyError, KeyRing, KeyRingIdentifier};
use zeroize::Zeroizing;

use crate::{MAX_BYTES, error::BackendError, utf8::text};

/// Key of type `user` with that description, in the session keyring or a keyring linked to it.
pub(crate) fn key(description: &str) -> Result<Zeroizing<String>, BackendError> {
    let ring = KeyRing::from_special_id(KeyRingIdentifier::Session, false).map_err(|e| why(&e))?;
    let key = ring.search(description).map_err(|e| why(&e))?;
    let mut bytes = Zeroizing::new(vec![0; MAX_BYTES + 1]);
    let length = key.read(&mut *bytes).map_err(|e| why(&e))?;
    if length > MAX_BYTES {
        return Err(BackendError::new(format!("it is larger than {} KiB", MAX_BYTES >> 10)));
    }
    bytes.truncate(length);
    text(bytes).ok_or_else(|| BackendError::new("it is not UTF-8 text"))
}

fn why(error: &KeyError) -> BackendError {
    BackendError::new(match error {
        KeyError::KeyDoesNotExist | KeyError::KeyringDoesNotExist => {
            "the session keyring does not have this key: `keyctl padd user DESCRIPTION @u` adds \
            one, \
             and `keyctl link @u @s` lets a session find it"
                .to_owned()
        }
        KeyError::KeyExpired => "the key has expired".to_owned(),
        KeyError::KeyRevoked => "the key was revoked".to_owned(),
        KeyError::AccessDenied | KeyError::PermissionDenied => {
            "the kernel does not permit this process to read it".to_owned()
        }
        KeyError::OperationNotSupported => "this kernel does not support keys".to_owned(),
        other => format!("the kernel reports {other:?}"),
    })
}
