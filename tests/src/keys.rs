//! WireGuard keys as text, new for each test.

use tunnel::PrivateKey;

#[derive(Debug, Clone)]
pub struct Keys {
    pub private: String,
    pub public: String,
}

impl Keys {
    pub fn generate() -> Self {
        let key = PrivateKey::generate();
        Self { private: key.to_base64().as_str().to_owned(), public: key.public_key().to_string() }
    }
}

/// A preshared key: any 32 bytes will do.
pub fn preshared() -> String {
    PrivateKey::generate().to_base64().as_str().to_owned()
}
