//! Decides kind and retry of EC2's errors, in one table.

use std::{error::Error as StdError, time::Duration};

use cloud_providers::{Error, ErrorKind, Retry, placement::Shortage};

/// An answer of EC2 that is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// EC2's code, such as `InsufficientInstanceCapacity`.
    pub code: &'a str,
    /// EC2's message.
    pub message: &'a str,
    /// EC2's id of the request, which its support asks for.
    pub request_id: Option<&'a str>,
    /// The time after which EC2 wants to be asked again, where it names one.
    pub retry_after: Option<Duration>,
}

/// Describes a call that EC2 refused.
///
/// The code decides; the status is what is left for codes that nobody has written down. Code and message are kept.
pub fn refused(operation: &str, answer: Answer<'_>) -> Error {
    let (kind, retry) = classify(answer.code).unwrap_or_else(|| (kind_of_status(answer.status), None));
    let error = Error::new(kind, "EC2 refused the call")
        .with_operation(operation)
        .with("status", answer.status)
        .with_cloud(answer.code, answer.message);
    let error = match answer.request_id {
        Some(id) => error.with("request id", id),
        None => error,
    };
    let error = match shortage(answer.code) {
        Some(shortage) => error.with_shortage(shortage),
        None => error,
    };
    match answer.retry_after.map(|delay| Retry::After { delay }).or(retry) {
        Some(retry) => error.with_retry(retry),
        None => error,
    }
}

/// Describes a call without an answer: nobody knows whether it took effect.
pub fn lost(operation: &str, source: impl StdError + 'static) -> Error {
    Error::new(ErrorKind::Transient, "EC2 gave no answer").with_operation(operation).with_source(source)
}

/// Describes an answer without something that EC2 always sends.
pub fn incomplete(operation: &str, missing: &str) -> Error {
    Error::internal("an answer of EC2 lacks something that it always has")
        .with_operation(operation)
        .with("missing", missing)
}

/// Says what a lack of room or of quota is about, where it is not the type in its zone.
fn shortage(code: &str) -> Option<Shortage> {
    Some(match code {
        "InsufficientFreeAddressesInSubnet" => Shortage::Subnet,
        "InstanceLimitExceeded" | "VcpuLimitExceeded" => Shortage::Type,
        "MaxSpotInstanceCountExceeded" => Shortage::Purchase,
        _ => return None,
    })
}

/// Decides what a code of EC2 means; `None` for one that is not known. Without a retry of its own a code has the one that
/// fits its kind in most cases.
pub(crate) fn classify(code: &str) -> Option<(ErrorKind, Option<Retry>)> {
    let capacity = || ErrorKind::Capacity { zone: None, instance_type: None };
    let soon = |seconds| Some(Retry::After { delay: Duration::from_secs(seconds) });
    Some(match code {
        // Who we are.
        "AuthFailure"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => (ErrorKind::Auth, None),

        // What we may do.
        "AccessDenied"
        | "AccessDeniedException"
        | "AuthorizationFailure"
        | "Blocked"
        | "OperationNotPermitted"
        | "OptInRequired"
        | "PendingVerification"
        | "UnauthorizedOperation" => (ErrorKind::Permission, None),

        // Another zone, type or purchase option, or a later moment, may have room.
        "InsufficientCapacity"
        | "InsufficientCapacityOnHost"
        | "InsufficientFreeAddressesInSubnet"
        | "InsufficientHostCapacity"
        | "InsufficientInstanceCapacity"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientVolumeCapacity"
        | "SpotMaxPriceTooLow"
        // The zone does not have the type, or not with this configuration.
        | "Unsupported"
        | "UnsupportedInstanceTypeOnHost" => (capacity(), None),

        // Limits that count by family of types or by purchase option: another offering may be within its own.
        "InstanceLimitExceeded" | "MaxSpotInstanceCountExceeded" | "VcpuLimitExceeded" => {
            (ErrorKind::Quota, Some(Retry::Elsewhere))
        }
        "AddressLimitExceeded"
        | "AttachmentLimitExceeded"
        | "InsufficientAddressCapacity"
        | "InvalidInterface.IpAddressLimitExceeded"
        | "MaxIOPSLimitExceeded"
        | "NetworkInterfaceLimitExceeded"
        | "PrivateIpAddressLimitExceeded"
        | "ResourceCountExceeded"
        | "ResourceCountLimitExceeded"
        | "ResourceLimitExceeded"
        | "SecurityGroupLimitExceeded"
        | "SecurityGroupsPerInstanceLimitExceeded"
        | "SecurityGroupsPerInterfaceLimitExceeded"
        | "TagLimitExceeded"
        | "VolumeLimitExceeded"
        | "VolumeSizeExceedsAccountQuota"
        | "VolumeTypeNotAvailableInRegion" => (ErrorKind::Quota, None),

        // Too fast. Buckets of EC2 fill by the second.
        "BandwidthLimitExceeded"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequestsException" => (ErrorKind::Throttled, None),

        // What was made is gone, or was never there. A malformed id was never one of ours.
        "InvalidAddress.NotFound"
        | "InvalidAddressID.NotFound"
        | "InvalidAllocationID.Malformed"
        | "InvalidAllocationID.NotFound"
        | "InvalidAssociationID.NotFound"
        | "InvalidAttachment.NotFound"
        | "InvalidAttachmentID.NotFound"
        | "InvalidInstanceID"
        | "InvalidInstanceID.Malformed"
        | "InvalidInstanceID.NotFound"
        | "InvalidNetworkInterface.NotFound"
        | "InvalidNetworkInterfaceAttachmentID.NotFound"
        | "InvalidNetworkInterfaceId.Malformed"
        | "InvalidNetworkInterfaceID.Malformed"
        | "InvalidNetworkInterfaceID.NotFound" => (ErrorKind::NotFound, None),

        // Something else has it, or the token was used for another request.
        "IdempotentInstanceTerminated"
        | "IdempotentParameterMismatch"
        | "InvalidAddress.Locked"
        | "InvalidIPAddress.InUse"
        | "InvalidPermission.Duplicate"
        | "Resource.AlreadyAssigned"
        | "Resource.AlreadyAssociated"
        | "VolumeInUse" => (ErrorKind::Conflict, None),

        // States on their way: an interface that is still attached, an instance that is not up yet.
        "ConcurrentCreateOptionsAccess"
        | "ConcurrentTagAccess"
        | "DependencyViolation"
        | "IncorrectInstanceState"
        | "IncorrectState"
        | "InvalidInstanceState"
        | "InvalidNetworkInterface.InUse"
        | "InvalidState"
        | "InvalidStateTransition" => (ErrorKind::Transient, soon(1)),

        // Faults of the service.
        "Internal"
        | "InternalError"
        | "InternalFailure"
        | "InternalServerError"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "Unavailable" => (ErrorKind::Transient, None),

        // What the options or the request name is not there or does not fit.
        "InvalidAMIAttributeItemValue"
        | "InvalidAMIID.Malformed"
        | "InvalidAMIID.NotFound"
        | "InvalidAMIID.Unavailable"
        | "InvalidAvailabilityZone"
        | "InvalidBlockDeviceMapping"
        | "InvalidCharacter"
        | "InvalidDevice.InUse"
        | "InvalidGroup.NotFound"
        | "InvalidGroupId.Malformed"
        | "InvalidInput"
        | "InvalidInstanceAttributeValue"
        | "InvalidInstanceType"
        | "InvalidKey.Format"
        | "InvalidKeyPair.Format"
        | "InvalidKeyPair.NotFound"
        | "InvalidLaunchTemplateId.Malformed"
        | "InvalidLaunchTemplateId.NotFound"
        | "InvalidLaunchTemplateId.NotFoundException"
        | "InvalidLaunchTemplateId.VersionNotFound"
        | "InvalidLaunchTemplateName.MalformedException"
        | "InvalidLaunchTemplateName.NotFoundException"
        | "InvalidParameter"
        | "InvalidParameterCombination"
        | "InvalidParameterDependency"
        | "InvalidParameterValue"
        | "InvalidSecurity.RequestHasExpired"
        | "InvalidSecurityGroupID.NotFound"
        | "InvalidSecurityGroupId.Malformed"
        | "InvalidSubnet"
        | "InvalidSubnetID.Malformed"
        | "InvalidSubnetID.NotFound"
        | "InvalidTagKey.Malformed"
        | "InvalidUserData.Malformed"
        | "InvalidVolume.NotFound"
        | "InvalidVolume.ZoneMismatch"
        | "InvalidVolumeID.Duplicate"
        | "InvalidVolumeID.Malformed"
        | "InvalidVolumeID.ZoneMismatch"
        | "InvalidVpcID.NotFound"
        | "InvalidZone.NotFound"
        | "MissingParameter"
        | "NoSuchVersion"
        | "UnsupportedInstanceAttribute"
        | "ValidationError"
        | "VPCIdNotSpecified"
        | "VPCResourceNotSpecified" => (ErrorKind::Config, None),

        "UnsupportedOperation" | "UnsupportedProtocol" | "UnsupportedTenancy" => (ErrorKind::Unsupported, None),

        // Calls that we put together wrongly.
        "DryRunOperation"
        | "FilterLimitExceeded"
        | "InvalidAction"
        | "InvalidClientToken"
        | "InvalidFilter"
        | "InvalidNextToken"
        | "InvalidPaginationToken"
        | "InvalidQueryParameter"
        | "MalformedQueryString"
        | "MissingAction"
        | "UnknownParameter"
        | "UnknownPrincipalType.Unsupported" => (ErrorKind::Internal, None),
        _ => return None,
    })
}

fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Auth,
        403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::Conflict,
        429 => ErrorKind::Throttled,
        408 | 500.. => ErrorKind::Transient,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: &'static str, status: u16) -> Error {
        let answer = Answer { status, code, message: "because", request_id: Some("r-1"), retry_after: None };
        refused("RunInstances", answer)
    }

    #[test]
    fn the_code_decides_and_else_the_status() {
        assert_eq!(*answer("UnauthorizedOperation", 403).kind(), ErrorKind::Permission);
        assert_eq!(*answer("VcpuLimitExceeded", 400).kind(), ErrorKind::Quota);
        assert_eq!(answer("InsufficientInstanceCapacity", 500).retry(), Retry::Elsewhere);
        let error = answer("NeverSeen", 503);
        assert_eq!(*error.kind(), ErrorKind::Transient);
        assert_eq!((error.code(), error.cloud_message()), (Some("NeverSeen"), Some("because")));
        assert!(error.to_string().contains("request id: r-1"), "{error}");
        assert_eq!(*answer("NeverSeen", 400).kind(), ErrorKind::Internal);
    }

    /// Codes of each kind with what a caller does next, and what a shortage is about.
    #[test]
    fn codes_have_kind_retry_and_reach() {
        let capacity = || ErrorKind::Capacity { zone: None, instance_type: None };
        let after = |seconds| Retry::After { delay: Duration::from_secs(seconds) };
        for (code, kind, retry, shortage) in [
            ("ExpiredToken", ErrorKind::Auth, Retry::Never, None),
            ("OptInRequired", ErrorKind::Permission, Retry::Never, None),
            ("InsufficientInstanceCapacity", capacity(), Retry::Elsewhere, None),
            ("Unsupported", capacity(), Retry::Elsewhere, None),
            ("InsufficientFreeAddressesInSubnet", capacity(), Retry::Elsewhere, Some(Shortage::Subnet)),
            ("VcpuLimitExceeded", ErrorKind::Quota, Retry::Elsewhere, Some(Shortage::Type)),
            ("MaxSpotInstanceCountExceeded", ErrorKind::Quota, Retry::Elsewhere, Some(Shortage::Purchase)),
            ("AddressLimitExceeded", ErrorKind::Quota, Retry::Never, None),
            ("RequestLimitExceeded", ErrorKind::Throttled, after(1), None),
            ("InvalidInstanceID.NotFound", ErrorKind::NotFound, Retry::Never, None),
            ("InvalidAllocationID.NotFound", ErrorKind::NotFound, Retry::Never, None),
            ("IdempotentParameterMismatch", ErrorKind::Conflict, Retry::Never, None),
            ("VolumeInUse", ErrorKind::Conflict, Retry::Never, None),
            ("IncorrectInstanceState", ErrorKind::Transient, after(1), None),
            ("DependencyViolation", ErrorKind::Transient, after(1), None),
            ("InvalidAMIID.NotFound", ErrorKind::Config, Retry::Never, None),
            ("InvalidLaunchTemplateName.NotFoundException", ErrorKind::Config, Retry::Never, None),
            ("UnsupportedOperation", ErrorKind::Unsupported, Retry::Never, None),
            ("MalformedQueryString", ErrorKind::Internal, Retry::Never, None),
        ] {
            let error = answer(code, 400);
            assert_eq!((error.kind(), error.retry(), error.shortage()), (&kind, retry, shortage), "{code}");
        }
        assert!(matches!(answer("InternalError", 500).retry(), Retry::After { .. }));
    }

    #[test]
    fn the_delay_of_the_server_is_kept() {
        let delay = Duration::from_secs(7);
        let answer = Answer { code: "RequestLimitExceeded", retry_after: Some(delay), ..Answer::default() };
        assert_eq!(refused("x", answer).retry(), Retry::After { delay });
    }
}
