//! The mesh vocabulary.
