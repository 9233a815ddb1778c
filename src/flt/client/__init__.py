"""One local fit: install a payload, train with a Lightning Trainer, collect an update. Read trainer first."""
