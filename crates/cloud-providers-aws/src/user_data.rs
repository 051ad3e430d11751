//! Fits user data into what EC2 takes.

use std::io::Write as _;

use cloud_providers::{Error, ErrorKind, Result, UserData};
use flate2::{Compression, GzBuilder};

/// The most bytes that EC2 takes, before it is encoded.
pub(crate) const EC2_LIMIT: usize = 16 * 1024;
/// The most bytes of a caller: what the guest unpacks.
pub(crate) const LIMIT: usize = 4 << 20;

/// Returns the user data as it goes to EC2: untouched where it fits, as gzip where only that does.
///
/// Guests other than ours may not unpack it, so it is compressed only when EC2 would refuse it otherwise.
pub(crate) fn fit(user_data: &UserData) -> Result<UserData> {
    if user_data.len() <= EC2_LIMIT {
        return Ok(user_data.clone());
    }
    let packed = gzip(user_data.as_bytes()).map_err(|error| {
        Error::new(ErrorKind::Internal, "the user data cannot be compressed").with_source(error)
    })?;
    if packed.len() > EC2_LIMIT {
        return Err(Error::config("user data is too large for EC2, compressed too")
            .with("bytes", user_data.len())
            .with("compressed", packed.len())
            .with("limit", EC2_LIMIT)
            .with("reduce", "image pull secrets or init-data"));
    }
    tracing::info!(
        provider = crate::NAME,
        bytes = user_data.len(),
        compressed = packed.len(),
        limit = EC2_LIMIT,
        "user data is too large for EC2 and goes as gzip: the guest must unpack it"
    );
    Ok(UserData::new(packed))
}

/// The same bytes give the same gzip, so that a repeated launch is byte-identical.
fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..bytes).map(next).collect()
    }

    #[test]
    fn what_fits_goes_untouched() {
        let raw = UserData::new(noise(EC2_LIMIT));
        assert_eq!(fit(&raw).unwrap(), raw);
    }

    #[test]
    fn what_does_not_fit_goes_as_gzip_that_repeats() {
        let raw = UserData::new(vec![b'x'; EC2_LIMIT + 1]);
        let packed = fit(&raw).unwrap();
        assert!(packed.len() < EC2_LIMIT && packed.as_bytes().starts_with(&[0x1f, 0x8b]));
        assert_eq!(fit(&raw).unwrap(), packed);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(packed.as_bytes()).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, raw.as_bytes());
    }

    #[test]
    fn what_does_not_fit_compressed_is_an_error_with_the_counts() {
        let error = fit(&UserData::new(noise(EC2_LIMIT * 2))).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config);
        let text = error.to_string();
        assert!(text.contains("bytes: 32768") && text.contains("limit: 16384"), "{text}");
    }
}
