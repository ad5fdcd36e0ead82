"""From a BIDS dataset to checked images: ``query`` chooses files, ``load`` reads and checks one."""
