"""A trained model on other machines (`intlm simulate`): `targets` are the machines, one file each."""
