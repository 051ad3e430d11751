//! Connects a provider to a world.

use std::sync::Arc;

use cloud_providers::{Error, ErrorKind, Result, async_trait};

use super::World;
use crate::client::{Access, Connect, Ec2};

#[async_trait]
impl Connect for World {
    async fn connect(&self, _: &Access) -> Result<Arc<dyn Ec2>> {
        Ok(Arc::new(self.clone()))
    }

    async fn metadata(&self, path: &str) -> Result<Option<String>> {
        Ok(self.lock().metadata.get(path).cloned())
    }
}

/// A world that runs outside of EC2: its metadata service does not answer.
#[derive(Clone, Debug)]
pub struct NoMetadata(
    /// The account.
    pub World,
);

#[async_trait]
impl Connect for NoMetadata {
    async fn connect(&self, _: &Access) -> Result<Arc<dyn Ec2>> {
        Ok(Arc::new(self.0.clone()))
    }

    async fn metadata(&self, _: &str) -> Result<Option<String>> {
        Err(Error::new(ErrorKind::Transient, "the metadata service does not answer"))
    }
}
