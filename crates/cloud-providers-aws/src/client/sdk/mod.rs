//! The calls over the vendor's SDK.
//!
//! The SDK signs, sends and parses. It repeats nothing: retries, limits of rate and waits are those of the layers around
//! the provider, and a second set below them would multiply the calls.

mod answers;
mod calls;
mod connect;
mod failure;
mod http;
mod metadata;
mod requests;

pub use connect::SdkConnect;

use std::fmt;

/// EC2 over the SDK.
pub(crate) struct SdkEc2 {
    ec2: aws_sdk_ec2::Client,
    sts: aws_sdk_sts::Client,
    /// Lets nothing of the SDK into the log.
    silent: bool,
}

impl fmt::Debug for SdkEc2 {
    // The SDK's own form prints its whole configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let region = self.ec2.config().region().map(ToString::to_string);
        f.debug_struct("SdkEc2").field("region", &region).finish_non_exhaustive()
    }
}
