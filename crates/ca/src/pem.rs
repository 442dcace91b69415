//! Reading and writing PEM, within limits.

/// The largest file that is read: all the certificates that fit a Kubernetes Secret.
pub(crate) const MAX_FILE: usize = 1 << 20;
/// The label of a certificate.
pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
/// The label of a revocation list.
pub(crate) const CRL: &str = "X509 CRL";

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Too large to be what it should be.
    #[error("{size} bytes: at most {limit} are allowed")]
    TooLarge {
        /// How large it is.
        size: usize,
        /// How large it may be.
        limit: usize,
    },
    /// Not PEM.
    #[error("not PEM: {0}")]
    Malformed(String),
    /// A block of another kind.
    #[error("holds a {0:?}, which does not belong there")]
    Label(String),
    /// No block at all.
    #[error("holds no {0:?}")]
    Empty(&'static str),
    /// More blocks than anything needs.
    #[error("holds {count} blocks: at most {limit} are allowed")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
}

/// Returns the contents of all blocks in `text`, which must all be labelled `label`. There may be none.
pub(crate) fn blocks(text: &[u8], label: &'static str, limit: usize) -> Result<Vec<Vec<u8>>, PemError> {
    if text.len() > MAX_FILE {
        return Err(PemError::TooLarge { size: text.len(), limit: MAX_FILE });
    }
    let blocks = pem::parse_many(text).map_err(|error| PemError::Malformed(error.to_string()))?;
    // The parser passes over what it does not take for a block: a cut-off one would be lost silently.
    let begun = text.windows(BEGIN.len()).filter(|window| *window == BEGIN).count();
    if begun != blocks.len() {
        return Err(PemError::Malformed("a block has no end".to_owned()));
    }
    if blocks.is_empty() && !text.trim_ascii().is_empty() {
        return Err(PemError::Empty(label));
    }
    if blocks.len() > limit {
        return Err(PemError::TooMany { count: blocks.len(), limit });
    }
    blocks
        .into_iter()
        .map(|block| match block.tag() {
            tag if tag == label => Ok(block.into_contents()),
            tag => Err(PemError::Label(tag.chars().take(40).collect())),
        })
        .collect()
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// Returns `der` as a block that ends with a newline.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_read_back() {
        let text = encode(CERTIFICATE, &[1; 100]) + "between\n" + &encode(CERTIFICATE, &[2]);
        assert_eq!(blocks(text.as_bytes(), CERTIFICATE, 2).unwrap(), [vec![1; 100], vec![2]]);
        assert_eq!(blocks(b" \n", CERTIFICATE, 2).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn anything_odd_is_an_error() {
        let certificate = encode(CERTIFICATE, &[1]);
        let cut_off = format!("{certificate}-----BEGIN CERTIFICATE-----\nAAAA\n");
        let error = |text: &[u8]| blocks(text, CERTIFICATE, 1).unwrap_err();
        assert!(matches!(error(cut_off.as_bytes()), PemError::Malformed(_)));
        assert!(matches!(error(b"-----BEGIN CERTIFICATE-----\nAAAA\n"), PemError::Malformed(_)));
        assert_eq!(error(b"text"), PemError::Empty(CERTIFICATE));
        assert_eq!(error(encode("PRIVATE KEY", &[1]).as_bytes()), PemError::Label("PRIVATE KEY".to_owned()));
        assert_eq!(error(certificate.repeat(2).as_bytes()), PemError::TooMany { count: 2, limit: 1 });
        assert_eq!(
            error(&vec![b'-'; MAX_FILE + 1]),
            PemError::TooLarge { size: MAX_FILE + 1, limit: MAX_FILE }
        );
    }
}
