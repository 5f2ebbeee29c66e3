//! Descriptions: what is taken, and what is refused with which words.
