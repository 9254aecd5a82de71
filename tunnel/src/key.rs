//! Keys that cannot be printed, and the checks that every key passes before it is used.
//!
//! Text form is base64 of 32 bytes, as `wg` writes it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use rand_core::{OsRng, RngCore};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A Curve25519 private key. Wiped when dropped; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

/// A Curve25519 public key. `Display` is base64, as `wg` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

/// A symmetric key mixed into the handshake. Wiped when dropped; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a WireGuard key: expected 44 characters of base64 that decode to 32 bytes")]
    Malformed,
}

impl PrivateKey {
    /// A new key from the operating system's random numbers, clamped as X25519 wants it.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        OsRng.fill_bytes(&mut *bytes);
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Self(*bytes)
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    /// Whether a handshake with `peer` would have a secret at all: false for the low-order points, which make
    /// the shared secret zero whatever the private key is (RFC 7748 §6.1).
    pub fn agrees_with(&self, peer: &PublicKey) -> bool {
        self.secret().diffie_hellman(&peer.point()).was_contributory()
    }

    /// The key as base64, for `skyway genkey` alone.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub(crate) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(self.0)
    }
}

impl PublicKey {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight characters, enough to tell peers apart in a log line.
    pub fn short(&self) -> String {
        let mut text = STANDARD.encode(self.0);
        text.truncate(8);
        text
    }

    pub(crate) fn point(&self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

impl PresharedKey {
    /// A new key from the operating system's random numbers.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        OsRng.fill_bytes(&mut *bytes);
        Self(*bytes)
    }

    /// The key as base64, for `skyway genpsk` alone.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub(crate) const fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| KeyError::Malformed)?);
    let mut key = Zeroizing::new([0u8; 32]);
    if bytes.len() != key.len() {
        return Err(KeyError::Malformed);
    }
    key.copy_from_slice(&bytes);
    Ok(key)
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|key| Self(*key))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|key| Self(*key))
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|key| Self(*key))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_is_the_one_wg_derives() {
        // `wg genkey | tee key | wg pubkey`, wireguard-tools 1.0.20210914.
        let private: PrivateKey = "2HJJ1mNjF4eyOZIQ4YYPy7+kFBPuoMd9UVBKdmQI4W8=".parse().expect("a key");
        assert_eq!(private.public_key().to_string(), "vXH/c36eWZ//c4yyKQtZ/4jffdrA3OyEisN3FPphiAU=");
    }

    #[test]
    fn debug_shows_nothing_of_a_secret() {
        let key = PrivateKey::generate();
        let shown = format!("{key:?} {:?}", PresharedKey::generate());
        assert_eq!(shown, "PrivateKey(hidden) PresharedKey(hidden)");
    }

    #[test]
    fn low_order_points_do_not_agree() {
        let private = PrivateKey::generate();
        let mut one = [0u8; 32];
        one[0] = 1;
        assert!(!private.agrees_with(&PublicKey::from_bytes([0; 32])));
        assert!(!private.agrees_with(&PublicKey::from_bytes(one)));
        assert!(private.agrees_with(&PrivateKey::generate().public_key()));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "abc", "AAAA", "2HJJ1mNjF4eyOZIQ4YYPy7+kFBPuoMd9UVBKdmQI4W8", "not base64 at all, and too long to be"] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Malformed), "{text:?}");
        }
    }
}
