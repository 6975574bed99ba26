"""`python -m keras_bert_lib.command_line` is `kbl`."""

from keras_bert_lib.command_line import main

if __name__ == "__main__":
    main()
