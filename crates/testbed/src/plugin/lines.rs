//! Lines within bounds.

use std::io;

use cloud_providers::Error;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// Reads the next line that is not blank, without its end. `None` is the end of the stream.
///
/// # Errors
///
/// When a line is longer than `limit` or no UTF-8, or reading fails.
pub(super) async fn next(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> Result<Option<String>, Error> {
    loop {
        let mut line = Vec::new();
        let ended = read(reader, &mut line, limit).await?;
        let text =
            String::from_utf8(line).map_err(|e| Error::internal("a line is not UTF-8").with_source(e))?;
        if !text.trim().is_empty() {
            return Ok(Some(text));
        }
        if ended {
            return Ok(None);
        }
    }
}

/// Reads up to the end of a line and says whether it was the end of the stream.
async fn read(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    limit: usize,
) -> Result<bool, Error> {
    loop {
        let part = match reader.fill_buf().await {
            Ok(part) => part,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::internal("cannot read a line").with_source(e)),
        };
        if part.is_empty() {
            return Ok(true);
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(part.len());
        if line.len() + taken > limit {
            return Err(Error::internal("a line is too long").with("limit", format!("{limit} bytes")));
        }
        line.extend_from_slice(&part[..taken]);
        let consumed = end.map_or(taken, |end| end + 1);
        reader.consume(consumed);
        if end.is_some() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut bytes: &[u8], limit: usize) -> Result<Vec<String>, Error> {
        let mut lines = Vec::new();
        while let Some(line) = next(&mut bytes, limit).await? {
            lines.push(line);
        }
        Ok(lines)
    }

    #[tokio::test]
    async fn lines_are_bounded_and_the_last_needs_no_end() {
        assert_eq!(all(b"{}\n\n \nb\r\nlast", 4).await.unwrap(), ["{}", "b\r", "last"]);
        assert!(all(b"12345\n", 4).await.unwrap_err().to_string().contains("too long (limit: 4 bytes)"));
        assert!(all(b"\xff\n", 4).await.unwrap_err().to_string().contains("UTF-8"));
        assert!(all(b"", 4).await.unwrap().is_empty());
    }
}
