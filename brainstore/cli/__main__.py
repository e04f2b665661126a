from brainstore.cli import main

main()
