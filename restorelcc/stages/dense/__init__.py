"""The dense checkpoint: pretrained here on the embedded world, or a reference to the user's."""
